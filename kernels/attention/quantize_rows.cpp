#include "kernels/attention/quantize_rows.h"

#include <initializer_list>

#include "kernels/attention/checks.h"
#include "kernels/attention/cpu_variants.h"

namespace fovea::kernels {

Status check(const QuantizeRowsArgs& args) {
  for (const int64_t size : {args.batch, args.heads, args.len, args.maps, args.num_pieces}) {
    if (size < 0) return invalid("negative size");
  }
  if (args.dim < 1) return invalid("heads without channels");
  if (args.batch == 0 || args.heads == 0 || args.len == 0) return {};
  if (!args.x.data || !args.out || !args.scale) return invalid("null data");
  if (const Status s = check_order(args.order, args.batch, args.heads, args.len); !s.ok()) return s;
  const int64_t last_map =
      (args.batch - 1) * args.map_batch_stride + (args.heads - 1) * args.map_head_stride;
  if (args.map_batch_stride < 0 || args.map_head_stride < 0 || last_map >= args.maps)
    return invalid("a head without pieces");
  for (int64_t map = 0; args.offsets && map < args.maps; ++map) {
    const int32_t* offsets = args.offsets + map * (args.num_pieces + 1);
    if (offsets[0] != 0 || offsets[args.num_pieces] != args.len)
      return invalid("pieces do not cover the sequence");
    for (int64_t i = 0; i < args.num_pieces; ++i) {
      if (offsets[i] > offsets[i + 1]) return invalid("piece offsets descend");
    }
  }
  return {};
}

Status quantize_rows_cpu(const QuantizeRowsArgs& args, const Parallel& parallel, Isa isa) {
  if (const Status status = check(args); !status.ok()) return status;
  if (!isa_available(isa))
    return {StatusCode::unsupported, "this processor lacks the instruction set"};
  auto* kernel = baseline::quantize_rows;
#if FOVEA_X86_VARIANTS
  if (isa == Isa::avx2) kernel = avx2::quantize_rows;
  if (isa >= Isa::avx512) kernel = avx512::quantize_rows;
#endif
  if (args.len > 0) kernel(args, parallel);
  return {};
}

}  // namespace fovea::kernels
