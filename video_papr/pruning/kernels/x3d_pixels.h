// The pixels that X3D reads, on a processor: frames of bytes, resampled and normalised in one pass.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace {

// Where an output lies between two of `size` values, corners not aligned: the first, and the share of the second.
std::pair<int64_t, float> between(int64_t output, int64_t outputs, int64_t size) {
  const float step = static_cast<float>(size) / outputs, place = std::max(0.f, step * (output + 0.5f) - 0.5f);
  const int64_t first = std::min<int64_t>(static_cast<int64_t>(place), size - 1);
  return {first, place - first};
}

// frames (B, T, H, W, 3) uint8 -> (B, t, h, w, 3) float32: the middle of each group of T / t frames (the sum of the two
// that lie there where T / t is even), bilinear, times `scale` (3), plus `shift` (3). T is a multiple of t.
at::Tensor x3d_pixels(const at::Tensor& frames, int64_t t, int64_t h, int64_t w, const at::Tensor& scale,
                      const at::Tensor& shift) {
  const at::Tensor input = frames.contiguous();
  const int64_t B = input.size(0), T = input.size(1), H = input.size(2), W = input.size(3), group = T / t;
  TORCH_CHECK(input.size(4) == 3 && group * t == T, "x3d_pixels: frames in groups, of three colours");
  at::Tensor out = at::empty({B, t, h, w, 3}, input.options().dtype(at::kFloat));
  const uint8_t* from = input.const_data_ptr<uint8_t>();
  const float *times = scale.const_data_ptr<float>(), *plus = shift.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, B * t * h, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> line(W * 3);
    for (int64_t row = begin; row < end; ++row) {
      const auto [y, down] = between(row % h, h, H);
      const int64_t below = (y + 1 < H ? W * 3 : 0), frame = row / h % t * group + group / 2, clip = row / h / t;
      const uint8_t* late = from + ((clip * T + frame) * H + y) * W * 3;
      const uint8_t* early = late - (group % 2 ? 0 : H * W * 3);
      const float twice = group % 2 ? 0.f : 1.f;
      for (int64_t i = 0; i < W * 3; ++i)
        line[i] = (1 - down) * (late[i] + twice * early[i]) + down * (late[i + below] + twice * early[i + below]);
      for (int64_t x = 0; x < w; ++x) {
        const auto [left, share] = between(x, w, W);
        const int64_t right = left + 1 < W ? 3 : 0;
        for (int64_t c = 0; c < 3; ++c) {
          const float value = (1 - share) * line[left * 3 + c] + share * line[left * 3 + right + c];
          to[(row * w + x) * 3 + c] = value * times[c] + plus[c];
        }
      }
    }
  });
  return out;
}

}  // namespace
