#include <cstdio>

#include "seqkern/isa.h"

int main() {
  for (const auto& isa : seqkern::available_isas()) std::printf("%s\n", isa.c_str());
}
