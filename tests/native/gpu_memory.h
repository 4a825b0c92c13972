// Memory for gpu_runner.h, each piece an allocation of its own with no byte more than was asked
// for, so that tools see the first one outside. Guarded memory is filled and has guard bytes behind
// it instead, which needs no tool.
#pragma once

#include <cstdint>
#include <vector>

namespace cosurfgs {
namespace program {

// Api has static functions: void* Allocate(bytes), null if there is none; Free(data); Fill(data,
// byte, bytes); ToDevice(data, host, bytes); ToHost(host, data, bytes).
template <class Api>
class Memory {
 public:
  explicit Memory(bool is_guarded) : guard_(is_guarded ? 256 : 0) {}
  Memory(const Memory&) = delete;
  ~Memory() {
    for (const Piece& piece : pieces_) Api::Free(piece.data);
  }

  void* Scratch(size_t bytes) {
    void* data = Api::Allocate(bytes + guard_);
    if (!data) return nullptr;
    pieces_.push_back({data, bytes});
    if (guard_) Api::Fill(data, kFill, bytes + guard_);
    return data;
  }
  template <class T>
  T* Make(int64_t count) {
    return static_cast<T*>(Scratch((count > 0 ? count : 1) * sizeof(T)));
  }
  template <class T>
  T* Put(const std::vector<T>& values) {
    T* data = Make<T>(values.size());
    Api::ToDevice(data, values.data(), values.size() * sizeof(T));
    return data;
  }
  template <class T>
  std::vector<T> Take(const T* data, int64_t count) {
    std::vector<T> values(data ? count : 0);
    Api::ToHost(values.data(), data, values.size() * sizeof(T));
    return values;
  }

  // Whether nothing was written behind a piece.
  bool AreGuardsWhole() const {
    std::vector<uint8_t> bytes(guard_);
    for (const Piece& piece : pieces_) {
      Api::ToHost(bytes.data(), static_cast<const char*>(piece.data) + piece.bytes, guard_);
      for (uint8_t byte : bytes) {
        if (byte != kFill) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int kFill = 0xa5;
  struct Piece {
    void* data;
    size_t bytes;
  };
  const size_t guard_;
  std::vector<Piece> pieces_;
};

}  // namespace program
}  // namespace cosurfgs
