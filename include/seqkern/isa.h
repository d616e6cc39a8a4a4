// Which instruction set the CPU kernels use. The best the machine has, capped by SEQKERN_ISA or set_isa.
#pragma once
#include <string>
#include <vector>

namespace seqkern {

std::string active_isa();
std::vector<std::string> available_isas();  // from the plainest to the best
void set_isa(const std::string& name);      // throws std::invalid_argument when it is not available

}  // namespace seqkern
