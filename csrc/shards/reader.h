// All shards of an entry as one list of records, read by the reader's own threads: the training loop requests batches
// ahead of time and finds them unpacked when it needs them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "shards/file.h"

namespace fasttransfer::shards {

// Work on items 0 to n - 1, which threads take a few at a time.
class Job {
 public:
  Job(int64_t items, int64_t at_once, std::function<void(int64_t)> item);

  // Waits until every item is done, working on some itself; throws the first exception of an item, after which no other
  // item begins.
  void wait();

  // Begins no further items and waits for those under way, after which their tensors may be freed.
  void abandon();

  // Takes some items and does them; returns false if none is left.
  bool work();

 private:
  const int64_t items_, at_once_;
  const std::function<void(int64_t)> item_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable ended_;
  int64_t done_ = 0;
  std::exception_ptr failure_;
};

class Reader {
 public:
  // The shards at `paths`, in order; see File.
  Reader(const std::vector<std::string>& paths, const std::string& entry, int64_t elements, int threads);
  ~Reader();

  int64_t records() const { return starts_.back(); }
  int64_t bytes() const;
  bool is_packed() const;  // all of it

  // The cumulative numbers of values of the records in `rows`: n + 1 numbers from 0.
  void offsets(const std::vector<int64_t>& rows, int64_t* to) const;

  // Begins to read records, in the order of `rows`, to `to`: dense, or packed at the places that offsets() gave. The
  // memory written to must live until the job has been waited for or abandoned. Throws std::out_of_range for a record
  // that does not exist.
  std::shared_ptr<Job> read_dense(std::vector<int64_t> rows, uint16_t* to);
  std::shared_ptr<Job> read_packed(std::vector<int64_t> rows, uint8_t* masks, const int64_t* places, uint16_t* to);

 private:
  struct Found {
    const File* file;
    int64_t record;  // in it
  };
  Found find(int64_t row) const;
  void check(const std::vector<int64_t>& rows) const;
  std::shared_ptr<Job> begin(int64_t items, std::function<void(int64_t)> item);
  void work();

  int64_t elements_;
  std::vector<std::unique_ptr<File>> files_;
  std::vector<int64_t> starts_{0};  // the first record of each file, then how many there are
  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<std::shared_ptr<Job>> jobs_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace fasttransfer::shards
