#include "core/file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;
using test::TemporaryFolder;
using test::write_bytes;

std::string content(const fs::path& path) { return read_file(path, 1 << 20); }

size_t count_files(const fs::path& folder) {
  return static_cast<size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

// Runs `body` in a child process and gives its exit status, or 128 + the signal that ended it.
int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(ReadFile, ReadsRegularFilesWithinTheLimit) {
  const TemporaryFolder folder;
  const std::string bytes("a\0b\n", 4);
  write_bytes(folder.path / "x", bytes);
  EXPECT_EQ(read_file(folder.path / "x", 4), bytes);
  EXPECT_EQ(check_regular_file(folder.path / "x"), 4u);
  expect_error(ErrorCode::resource, "has 4 bytes, at most 3 are read",
               [&] { read_file(folder.path / "x", 3); });
  write_bytes(folder.path / "empty", "");
  EXPECT_EQ(read_file(folder.path / "empty", 0), "");
}

TEST(ReadFile, RefusesWhatIsNoRegularFile) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder.path / "pipe").c_str(), 0600), 0);
  fs::create_symlink(folder.path / "none", folder.path / "link");
  fs::create_symlink(folder.path / "loop", folder.path / "loop");
  expect_error(ErrorCode::bad_data, "no such file", [&] { content(folder.path / "none"); });
  expect_error(ErrorCode::bad_data, "no such file", [&] { content(folder.path / "link"); });
  expect_error(ErrorCode::bad_data, "loop", [&] { content(folder.path / "loop"); });
  expect_error(ErrorCode::bad_data, "is a folder", [&] { content(folder.path); });
  expect_error(ErrorCode::bad_data, "not a regular file", [&] { content(folder.path / "pipe"); });
  expect_error(ErrorCode::bad_data, "not a regular file", [] { content("/dev/zero"); });
}

TEST(FolderLock, HoldsAFolderAsLongAsItLives) {
  const TemporaryFolder folder;
  {
    const FolderLock first(folder.path);
    expect_error(ErrorCode::conflict, "another run", [&] { FolderLock second(folder.path); });
  }
  const FolderLock third(folder.path);
  EXPECT_EQ(count_files(folder.path), 0u);
  const FolderLock missing(folder.path / "missing");
}

TEST(AtomicFile, AppearsWholeAndOnlyAtCommit) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "out.txt";
  {
    AtomicFile file(path, false);
    file.write(std::string_view("one "));
    file.write(std::as_bytes(std::span("two", 3)));
    EXPECT_FALSE(fs::exists(path));
    EXPECT_EQ(file.temporary_path().parent_path(), folder.path);
    EXPECT_TRUE(file.temporary_path().filename().string().starts_with("."));
    EXPECT_EQ(file.temporary_path().extension(), ".txt");
    file.commit();
    EXPECT_EQ(content(path), "one two");
  }
  EXPECT_EQ(count_files(folder.path), 1u);
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "out";
  write_bytes(path, "old");
  {
    AtomicFile file(path, true);
    file.write(std::string_view("new"));
  }
  EXPECT_EQ(content(path), "old");
  EXPECT_EQ(count_files(folder.path), 1u);
}

TEST(AtomicFile, TakesBytesOfAnotherWriter) {
  const TemporaryFolder folder;
  AtomicFile file(folder.path / "out", false);
  file.close_descriptor();
  write_bytes(file.temporary_path(), "written elsewhere");
  file.commit();
  EXPECT_EQ(content(folder.path / "out"), "written elsewhere");
}

TEST(AtomicFile, ReplacesOnlyWhenAsked) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "out";
  write_bytes(path, "old");
  expect_error(ErrorCode::conflict, "exists", [&] { AtomicFile file(path, false); });
  EXPECT_EQ(content(path), "old");
  {
    AtomicFile file(path, true);
    file.write(std::string_view("new"));
    file.commit();
  }
  EXPECT_EQ(content(path), "new");
}

TEST(AtomicFile, KeepsAFileThatAppearedMeanwhile) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "out";
  {
    AtomicFile file(path, false);
    file.write(std::string_view("ours"));
    write_bytes(path, "theirs");
    expect_error(ErrorCode::conflict, "appeared while", [&] { file.commit(); });
  }
  EXPECT_EQ(content(path), "theirs");
  EXPECT_EQ(count_files(folder.path), 1u);
}

TEST(AtomicFile, RefusesPathsThatCannotBeWritten) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::usage, "does not exist",
               [&] { AtomicFile file(folder.path / "none" / "out", false); });
  write_bytes(folder.path / "file", "x");
  expect_error(ErrorCode::usage, "does not exist",
               [&] { AtomicFile file(folder.path / "file" / "out", false); });
  fs::create_directory(folder.path / "sub");
  expect_error(ErrorCode::conflict, "is no regular file",
               [&] { AtomicFile file(folder.path / "sub", true); });
  ASSERT_EQ(mkfifo((folder.path / "pipe").c_str(), 0600), 0);
  expect_error(ErrorCode::conflict, "is no regular file",
               [&] { AtomicFile file(folder.path / "pipe", true); });
  expect_error(ErrorCode::usage, "no file name", [&] { AtomicFile file(folder.path / "", false); });
  expect_error(ErrorCode::usage, "name too long",
               [&] { AtomicFile file(folder.path / std::string(300, 'n'), false); });
  EXPECT_EQ(count_files(folder.path), 3u);
}

// A file-size limit fails like a full disk: some bytes fit, then an error.
TEST(AtomicFile, ReportsAFullDiskAndLeavesTheOldFile) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "out";
  write_bytes(path, "old");
  for (const size_t room : {size_t{0}, size_t{1}, size_t{1000}, size_t{9999}}) {
    const int code = in_child([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{room, room};
      setrlimit(RLIMIT_FSIZE, &limit);
      try {
        AtomicFile file(path, true);
        file.write(std::string_view(std::string(10'000, 'n')));
        file.commit();
      } catch (const Error& error) {
        return error.exit_code();
      }
      return 0;
    });
    EXPECT_EQ(code, static_cast<int>(ErrorCode::resource)) << room;
    EXPECT_EQ(content(path), "old");
    EXPECT_EQ(count_files(folder.path), 1u);
  }
}

TEST(AtomicFolder, AppearsWholeOrNotAtAll) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "out";
  {
    const AtomicFolder left(path);
    write_bytes(left.temporary_path() / "a", "1");
    fs::create_directory(left.temporary_path() / "deep");
    EXPECT_FALSE(fs::exists(path));
  }
  EXPECT_TRUE(fs::is_empty(folder.path));
  for (const bool exists : {false, true}) {  // an empty folder is as good as none
    if (exists) fs::create_directory(path);
    AtomicFolder made(path / "");
    write_bytes(made.temporary_path() / "a", "1");
    made.commit();
    EXPECT_EQ(content(path / "a"), "1");
    fs::remove_all(path);
  }
  EXPECT_TRUE(fs::is_empty(folder.path));
}

TEST(AtomicFolder, KeepsWhatIsThere) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "out";
  {
    AtomicFolder late(path);
    fs::create_directory(path);
    write_bytes(path / "mine", "kept");
    expect_error(ErrorCode::conflict, "appeared", [&] { late.commit(); });
  }
  expect_error(ErrorCode::conflict, "exists", [&] { AtomicFolder again(path); });
  expect_error(ErrorCode::conflict, "exists", [&] { AtomicFolder file(path / "mine"); });
  expect_error(ErrorCode::usage, "does not exist", [&] { AtomicFolder none(path / "no/out"); });
  EXPECT_EQ(content(path / "mine"), "kept");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1);
}

TEST(AtomicFolder, IsRemovedForAProcessThatEndsAtOnce) {
  const TemporaryFolder folder;
  const AtomicFolder made(folder.path / "out");
  write_bytes(made.temporary_path() / "a", "1");
  remove_temporary_files();
  EXPECT_TRUE(fs::is_empty(folder.path));
}

TEST(TemporaryFiles, OfProcessesThatAreGoneAreRemoved) {
  const TemporaryFolder folder;
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(gone, nullptr, 0), gone);
  const std::string dead = std::to_string(gone), alive = std::to_string(::getpid());
  const std::vector<std::string> kept = {".out." + alive + "-0.part.txt",
                                         "out." + dead + "-0.part.txt",
                                         "." + dead + "-0.part.txt",
                                         ".out." + dead + "-.part.txt",
                                         ".out." + dead + "x-0.part.txt",
                                         ".out." + dead + "-0.txt",
                                         ".out.-0.part.txt"};
  const std::vector<std::string> stale = {".out." + dead + "-0.part.txt",
                                          ".out.log." + dead + "-17.part.jsonl",
                                          ".out." + dead + "-0.part"};
  fs::create_directory(folder.path / "sub");
  for (const fs::path& place : {folder.path, folder.path / "sub"}) {
    for (const std::string& name : kept) write_bytes(place / name, "x");
    for (const std::string& name : stale) write_bytes(place / name, "x");
  }
  remove_stale_temporaries(folder.path);
  for (const fs::path& place : {folder.path, folder.path / "sub"}) {
    for (const std::string& name : kept) EXPECT_TRUE(fs::exists(place / name)) << name;
    for (const std::string& name : stale) EXPECT_FALSE(fs::exists(place / name)) << name;
  }
  remove_stale_temporaries(folder.path / "no folder");
}

TEST(TemporaryFiles, AreRemovedForAProcessThatEndsAtOnce) {
  const TemporaryFolder folder;
  const int code = in_child([&] {
    AtomicFile file(folder.path / "out", false);
    file.write(std::string_view("x"));
    register_temporary(folder.path / "other");
    write_bytes(folder.path / "other", "x");
    register_temporary(folder.path / "kept");
    write_bytes(folder.path / "kept", "x");
    unregister_temporary(folder.path / "kept");
    remove_temporary_files();
    _exit(0);
    return 1;
  });
  EXPECT_EQ(code, 0);
  EXPECT_TRUE(fs::exists(folder.path / "kept"));
  EXPECT_EQ(count_files(folder.path), 1u);
}

}  // namespace
}  // namespace fovea
