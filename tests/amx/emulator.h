#pragma once

namespace seqkern {

void install_amx_emulator();  // takes over SIGILL of this process

}  // namespace seqkern
