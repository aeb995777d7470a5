#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace fovea {

namespace fs = std::filesystem;

/// Size in bytes of the regular file at `path`.
///
/// throws  Error bad_data when it is missing, not a regular file or not readable
uint64_t check_regular_file(const fs::path& path);

/// The whole file as bytes. throws Error bad_data as `check_regular_file`, resource above max_bytes
std::string read_file(const fs::path& path, uint64_t max_bytes);

/// Throws Error: usage when the folder that `path` is to be written into does not exist; conflict
/// when `path` exists and `overwrite` is false, or is no regular file.
void check_output_path(const fs::path& path, bool overwrite);

/// A file that is written beside its final place and renamed when it is whole.
///
/// The temporary name is hidden, in the same folder, and removed by the destructor, or by
/// `remove_temporary_files()` when the process has to end at once. Nothing at the final path
/// changes before `commit()`.
class AtomicFile {
 public:
  /// throws Error as `check_output_path`, and resource when the file cannot be created
  AtomicFile(fs::path path, bool overwrite);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const fs::path& path() const { return path_; }                 ///< the final path
  const fs::path& temporary_path() const { return temporary_; }  ///< where to write until commit

  /// Appends bytes. throws Error resource (disk full, file too large, read-only)
  void write(std::string_view bytes);
  void write(std::span<const std::byte> bytes);
  /// For writers that open `temporary_path()` themselves: gives up our own descriptor.
  void close_descriptor();
  /// fsync, rename to the final path, fsync of the folder. With overwrite false a file that has
  /// appeared at the final path in the meantime is kept and Error conflict is thrown.
  void commit();

 private:
  fs::path path_;
  fs::path temporary_;
  bool overwrite_;
  bool committed_ = false;
  int descriptor_ = -1;
};

/// A folder that is filled beside its final place and renamed when it is whole; else, with all in
/// it, removed by the destructor, or by `remove_temporary_files()`.
class AtomicFolder {
 public:
  /// throws Error conflict when the path exists (an empty folder is replaced), usage when the
  /// folder
  ///        around it does not, resource when it cannot be made
  explicit AtomicFolder(fs::path path);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const fs::path& path() const { return path_; }                 ///< the final path
  const fs::path& temporary_path() const { return temporary_; }  ///< where to write until commit

  /// Renames to the final path. throws Error conflict when something has appeared there meanwhile
  void commit();

 private:
  fs::path path_;
  fs::path temporary_;
  bool committed_ = false;
};

/// Keeps a folder for one process as long as it lives; however the process ends, the lock goes with
/// it, and it leaves no file. Where the file system has no locks it does nothing.
class FolderLock {
 public:
  /// throws  Error conflict when another one holds the folder
  explicit FolderLock(const fs::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_ = -1;
};

/// Adds a file or folder to, or takes it off, the list that `remove_temporary_files` removes.
void register_temporary(const fs::path& path);
void unregister_temporary(const fs::path& path);
/// Removes every registered temporary file; for a process that ends without unwinding.
void remove_temporary_files() noexcept;

/// Removes the temporary files below `folder` whose processes are gone: what killed runs of this
/// machine left.
void remove_stale_temporaries(const fs::path& folder);

/// Lower-case hex SHA-256 of the file's bytes; errors as `check_regular_file`.
std::string sha256_file(const fs::path& path);
std::string sha256(std::string_view bytes);

/// The Error that a failed system call stands for: resource for ENOSPC, EDQUOT, EFBIG, ENOMEM,
/// EROFS, EACCES on output, usage for ENAMETOOLONG, ENOTDIR and ELOOP, with strerror(number) as the
/// reason.
[[noreturn]] void throw_errno(int number, const fs::path& path, std::string_view action);

}  // namespace fovea
