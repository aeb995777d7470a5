#include "core/file.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;
using test::TemporaryFolder;
using test::write_bytes;

// source  FIPS PUB 180 examples; Python's hashlib gives the same
TEST(Sha256, GivesThePublishedDigests) {
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// Every length up to 299 crosses each case of the padding; one digest of all digests, from
// hashlib: sha256(''.join(sha256(pattern[:n]).hexdigest() for n in range(300))).
TEST(Sha256, EqualsPythonAtEveryLength) {
  std::string pattern;
  for (int i = 0; i < 300; ++i) pattern += static_cast<char>((i * 7 + 3) % 256);
  std::string digests;
  for (size_t n = 0; n < 300; ++n) digests += sha256(pattern.substr(0, n));
  EXPECT_EQ(sha256(digests), "e58750e2a145fc5559c66f9b6cfb156f52894470a74c4daec866d7b6ceea29ea");
}

TEST(Sha256, OfAFileIsThatOfItsBytes) {
  const TemporaryFolder folder;
  const std::string bytes((1 << 20) + 77, 'x');  // more than one read
  write_bytes(folder.path / "x", bytes);
  EXPECT_EQ(sha256_file(folder.path / "x"), sha256(bytes));
  expect_error(ErrorCode::bad_data, "no such file", [&] { sha256_file(folder.path / "none"); });
  expect_error(ErrorCode::bad_data, "is a folder", [&] { sha256_file(folder.path); });
}

}  // namespace
}  // namespace fovea
