// Memory that outlives a call. Fresh memory costs page faults (250 times the price of touching warm
// memory), so calls borrow scratch memory from a free list and give it back; concurrent calls
// (several devices) get one each.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "common/huge_pages.h"

namespace cosurfgs {

// An uninitialised array that only grows.
template <class T>
class Scratch {
 public:
  T* Get(size_t size) {
    if (size > capacity_) {
      data_.reset();
      capacity_ = 0;
      size_t bytes = (size + size / 8) * sizeof(T);
      data_.reset(static_cast<T*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)));
      if (!data_) throw std::bad_alloc();
      AskForHugePages(data_.get(), bytes);
      capacity_ = size + size / 8;
    }
    return data_.get();
  }

  // Gives the memory back.
  void Drop() {
    data_.reset();
    capacity_ = 0;
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t capacity_ = 0;
};

// Borrows a W for the lifetime of the object.
template <class W>
class Borrowed {
 public:
  Borrowed() {
    std::lock_guard<std::mutex> lock(Mutex());
    if (!Free().empty()) {
      item_ = std::move(Free().back());
      Free().pop_back();
    }
    if (!item_) item_ = std::make_unique<W>();
  }
  ~Borrowed() {
    std::lock_guard<std::mutex> lock(Mutex());
    Free().push_back(std::move(item_));
  }
  W* operator->() { return item_.get(); }
  W& operator*() { return *item_; }

 private:
  static std::mutex& Mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static std::vector<std::unique_ptr<W>>& Free() {
    static auto* free =
        new std::vector<std::unique_ptr<W>>;  // never destroyed: pool threads may outlive statics
    return *free;
  }
  std::unique_ptr<W> item_;
};

}  // namespace cosurfgs
