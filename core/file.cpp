#include "core/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <regex>
#include <vector>

#include "core/check.h"

namespace fovea {
namespace {

std::mutex g_temporary_mutex;
std::vector<std::string>& temporary_files() {
  static std::vector<std::string> files;
  return files;
}

fs::path folder_of(const fs::path& path) {
  const fs::path folder = path.parent_path();
  return folder.empty() ? fs::path(".") : folder;
}

// A name in the same folder that no other run of any process uses.
fs::path temporary_name(const fs::path& path) {
  static std::atomic<int> counter{0};
  return folder_of(path) / str(".", path.stem().string(), ".", ::getpid(), "-", counter++, ".part",
                               path.extension().string());
}

// The process that made a temporary file, see `temporary_name`; 0 when the name is not of one.
pid_t temporary_owner(const std::string& name) {
  static const std::regex pattern("\\..+\\.([0-9]{1,9})-[0-9]+\\.part(\\.[^.]*)?");
  std::smatch match;
  return std::regex_match(name, match, pattern) ? std::stoi(match[1]) : 0;
}

void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;  // the rename has happened; durability of the entry is best effort
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

void throw_errno(int number, const fs::path& path, std::string_view action) {
  const bool resource = number == ENOSPC || number == EDQUOT || number == EFBIG ||
                        number == ENOMEM || number == EAGAIN || number == EROFS ||
                        number == EACCES || number == EPERM || number == EMFILE ||
                        number == ENFILE || number == EIO || number == ENOENT || number == EPIPE;
  const bool usage = number == ENAMETOOLONG || number == ENOTDIR || number == ELOOP;
  throw Error(resource ? ErrorCode::resource
              : usage  ? ErrorCode::usage
                       : ErrorCode::internal,
              path.string(), str("cannot ", action, ": ", std::strerror(number)));
}

uint64_t check_regular_file(const fs::path& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    throw Error(ErrorCode::bad_data, path.string(),
                errno == ENOENT ? "no such file" : std::strerror(errno));
  }
  require(S_ISREG(info.st_mode), ErrorCode::bad_data, path.string(),
          S_ISDIR(info.st_mode) ? "is a folder, expected a file" : "is not a regular file");
  return static_cast<uint64_t>(info.st_size);
}

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  const uint64_t size = check_regular_file(path);
  require(size <= max_bytes, ErrorCode::resource, path.string(), "has ", size, " bytes, at most ",
          max_bytes, " are read");
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(descriptor >= 0, ErrorCode::bad_data, path.string(),
          "cannot open: ", std::strerror(errno));
  std::string bytes(size, '\0');
  size_t done = 0;
  int number = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(descriptor, bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) number = errno;
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  ::close(descriptor);
  require(number == 0, ErrorCode::bad_data, path.string(), "cannot read: ", std::strerror(number));
  bytes.resize(done);
  return bytes;
}

void check_output_path(const fs::path& path, bool overwrite) {
  require(!path.filename().empty(), ErrorCode::usage, path.string(), "is no file name");
  std::error_code ignored;
  const fs::path folder = folder_of(path);
  require(fs::is_directory(folder, ignored), ErrorCode::usage, path.string(), "the output folder '",
          folder.string(), "' does not exist");
  const fs::file_status status = fs::symlink_status(path, ignored);
  if (!fs::exists(status)) return;
  require(overwrite, ErrorCode::conflict, path.string(), "exists; --overwrite replaces it");
  require(fs::is_regular_file(status), ErrorCode::conflict, path.string(),
          "exists and is no regular file, so it is not replaced");
}

AtomicFile::AtomicFile(fs::path path, bool overwrite)
    : path_(std::move(path)), overwrite_(overwrite) {
  check_output_path(path_, overwrite_);
  temporary_ = temporary_name(path_);
  register_temporary(temporary_);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    const int number = errno;
    unregister_temporary(temporary_);
    throw_errno(number, path_, "create a file in its folder");
  }
}

AtomicFile::~AtomicFile() {
  close_descriptor();
  if (!committed_) ::unlink(temporary_.c_str());
  unregister_temporary(temporary_);
}

void AtomicFile::write(std::string_view bytes) {
  FOVEA_ASSERT(descriptor_ >= 0);
  while (!bytes.empty()) {
    const ssize_t done = ::write(descriptor_, bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) throw_errno(errno, path_, "write");
    bytes.remove_prefix(static_cast<size_t>(done));
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void AtomicFile::close_descriptor() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
}

void AtomicFile::commit() {
  if (descriptor_ < 0) descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor_ < 0 || ::fsync(descriptor_) != 0) throw_errno(errno, path_, "flush");
  const int closed = ::close(descriptor_);
  descriptor_ = -1;
  if (closed != 0) throw_errno(errno, path_, "close");
  if (overwrite_) {
    if (::rename(temporary_.c_str(), path_.c_str()) != 0)
      throw_errno(errno, path_, "rename into place");
  } else {
    // link + unlink never replaces a file that somebody else has made since the first check.
    if (::link(temporary_.c_str(), path_.c_str()) != 0) {
      require(errno != EEXIST, ErrorCode::conflict, path_.string(),
              "appeared while this run was writing it");
      if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) !=
          0) {
        require(errno != EEXIST, ErrorCode::conflict, path_.string(),
                "appeared while this run was writing it");
        throw_errno(errno, path_, "rename into place");
      }
    } else {
      ::unlink(temporary_.c_str());
    }
  }
  committed_ = true;
  sync_folder(folder_of(path_));
}

AtomicFolder::AtomicFolder(fs::path path) : path_(std::move(path)) {
  if (path_.filename().empty()) path_ = path_.parent_path();  // "name/"
  std::error_code error;
  if (!fs::is_directory(path_, error) || !fs::is_empty(path_, error)) {
    require(!fs::exists(fs::symlink_status(path_, error)), ErrorCode::conflict, path_.string(),
            "exists; expected the name of a new folder");
    check_output_path(path_, /*overwrite=*/false);
  }
  temporary_ = temporary_name(path_);
  register_temporary(temporary_);
  if (::mkdir(temporary_.c_str(), 0755) == 0) return;
  const int number = errno;
  unregister_temporary(temporary_);
  throw_errno(number, path_, "create a folder");
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
  unregister_temporary(temporary_);
}

void AtomicFolder::commit() {
  sync_folder(temporary_);
  // Replaces nothing but an empty folder.
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const bool taken = errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR;
    require(!taken, ErrorCode::conflict, path_.string(), "appeared while this run was writing it");
    throw_errno(errno, path_, "rename into place");
  }
  committed_ = true;
  sync_folder(folder_of(path_));
}

FolderLock::FolderLock(const fs::path& folder)
    : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (descriptor_ < 0 || ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
    return;
  }
  ::close(descriptor_);
  throw Error(ErrorCode::conflict, folder.string(), "another run is writing there");
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void register_temporary(const fs::path& path) {
  const std::lock_guard lock(g_temporary_mutex);
  temporary_files().push_back(path.string());
}

void unregister_temporary(const fs::path& path) {
  const std::lock_guard lock(g_temporary_mutex);
  std::erase(temporary_files(), path.string());
}

void remove_stale_temporaries(const fs::path& folder) {
  std::error_code error;
  const auto options = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator it(folder, options, error), end; !error && it != end;
       it.increment(error)) {
    const pid_t owner = temporary_owner(it->path().filename().string());
    if (owner == 0 || ::kill(owner, 0) == 0 || errno != ESRCH) continue;
    if (it->is_directory(error)) it.disable_recursion_pending();
    fs::remove_all(it->path(), error);
  }
}

void remove_temporary_files() noexcept {
  const std::lock_guard lock(g_temporary_mutex);
  std::error_code ignored;
  for (const std::string& file : temporary_files()) {
    if (::unlink(file.c_str()) != 0) fs::remove_all(file, ignored);
  }
  temporary_files().clear();
}

}  // namespace fovea
