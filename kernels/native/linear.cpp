#include "linear.hpp"

namespace modelfleet {

void pack_panel(const bf16* weight, std::int64_t outputs, std::int64_t inputs, std::int64_t panel, bf16* panels) {
  bf16* to = panels + panel * inputs * PANEL_OUTPUTS;
  for (std::int64_t lane = 0; lane < PANEL_OUTPUTS; ++lane) {
    const std::int64_t output = panel * PANEL_OUTPUTS + lane;
    for (std::int64_t k = 0; k < inputs; k += 2) {
      std::uint32_t pair = 0;
      if (output < outputs) __builtin_memcpy(&pair, weight + output * inputs + k, sizeof pair);
      __builtin_memcpy(to + k * PANEL_OUTPUTS + 2 * lane, &pair, sizeof pair);
    }
  }
}

}  // namespace modelfleet
