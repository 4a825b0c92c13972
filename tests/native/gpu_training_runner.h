// The photometric losses and Adam with a device and its memory (gpu_runner.h): what
// gpu/cuda_training_handlers.cc does, without XLA.
#pragma once

#include <cmath>

#include "gpu/adam.h"
#include "gpu/photometric.h"
#include "gpu_training_scene.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

template <class Device, class Memory>
void RunLosses(Device& device, Memory& memory, const program::TrainingShape& shape,
               program::TrainingResults& results) {
  const int64_t pixels = int64_t(shape.height) * shape.width;
  PhotometricArgs args{};
  args.height = shape.height, args.width = shape.width, args.channels = shape.channels;
  args.render = memory.Put(program::Numbers(0, 3 * pixels, -0.1f, 1.1f));
  args.alpha = memory.Put(program::Numbers(1, pixels, 0.0f, 1.0f));
  args.transform = memory.Put(program::Numbers(2, 12, -0.2f, 0.8f));
  args.photo = memory.Put(program::Bytes(3, shape.channels * pixels, 256));
  args.mask = shape.has_mask
                  ? reinterpret_cast<const bool*>(memory.Put(program::Bytes(4, pixels, 2)))
                  : nullptr;
  args.color_weight = 0.8f, args.ssim_weight = 0.2f, args.light_weight = 0.01f;
  args.losses = memory.template Make<float>(2),
  args.grad_render = memory.template Make<float>(3 * pixels);
  args.grad_alpha = memory.template Make<float>(pixels),
  args.grad_transform = memory.template Make<float>(12);
  RunPhotometric(device, args);
  results.losses = memory.Take(args.losses, 2);
  results.grad_render = memory.Take(args.grad_render, 3 * pixels);
  results.grad_alpha = memory.Take(args.grad_alpha, pixels);
  results.grad_transform = memory.Take(args.grad_transform, 12);
}

// With moments everywhere, rows that are dead, and numbers that stand still.
template <class Device, class Memory>
void RunAdamStep(Device& device, Memory& memory, const program::TrainingShape& shape,
                 program::TrainingResults& results) {
  const int64_t size = shape.num_rows * shape.row_floats;
  std::vector<float> learns(shape.row_floats, 1.0f);
  for (int i = shape.row_floats / 2; i > 0 && i < shape.row_floats; ++i) learns[i] = 0.0f;
  AdamArgs args{};
  args.size = size, args.row_floats = shape.row_floats, args.is_aligned = true;
  args.rates = memory.Put(program::Numbers(5, shape.row_floats, 0.001f, 0.1f)),
  args.learns = memory.Put(learns);
  args.alive = reinterpret_cast<const bool*>(memory.Put(program::Bytes(6, shape.num_rows, 2)));
  args.count = memory.Put(std::vector<int32_t>{7});
  args.gradient = memory.Put(program::Numbers(7, size, -1.0f, 1.0f));
  args.values = memory.Put(program::Numbers(8, size, -1.0f, 1.0f));
  args.mu = memory.Put(program::Numbers(9, size, -1.0f, 1.0f));
  args.nu = memory.Put(program::Numbers(10, size, 0.0f, 1.0f));
  args.beta1 = 0.9f, args.beta2 = 0.999f, args.gain1 = 0.1f, args.gain2 = 0.001f,
  args.epsilon = 1e-15f;
  args.log_beta1 = std::log(0.9f), args.log_beta2 = std::log(0.999f);
  RunAdam(device, args);
  results.values = memory.Take(args.values, size);
  results.mu = memory.Take(args.mu, size);
  results.nu = memory.Take(args.nu, size);
}

template <class Device, class Memory>
program::TrainingResults RunTraining(Device& device, Memory& memory,
                                     const program::TrainingShape& shape) {
  program::TrainingResults results;
  RunLosses(device, memory, shape, results);
  RunAdamStep(device, memory, shape, results);
  return results;
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
