#include "apps/fovea/op_command.h"

#include <fstream>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/ops/modulate.h"
#include "core/ops/norm.h"
#include "core/ops/rope.h"
#include "core/weights.h"
#include "tests/support/files.h"

namespace fovea::apps {
namespace {

class OpCommandTest : public testing::Test {
 protected:
  void SetUp() override { at::manual_seed(3); }
  OpRun run(const std::string& name, const TensorMap& inputs,
            std::vector<std::string> settings = {}) {
    const fs::path in = folder_.path / "in.safetensors";
    save_tensors(in, inputs, /*overwrite=*/true);
    return {name, in, folder_.path / "out.safetensors", std::move(settings), /*overwrite=*/true};
  }
  at::Tensor result(const OpRun& asked) {
    run_op(asked);
    return load_tensors(asked.out).at("out");
  }
  void expect_error(const OpRun& asked, ErrorCode code, const std::string& text) {
    try {
      run_op(asked);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_FALSE(fs::exists(asked.out));
  }
  test::TemporaryFolder folder_;
};

TEST_F(OpCommandTest, TableAgreesWithTheRegistry) {
  for (const OpEntry& entry : op_table()) {
    SCOPED_TRACE(entry.name);
    const auto op = c10::Dispatcher::singleton().findSchema({"fovea::" + entry.name, ""});
    ASSERT_TRUE(op.has_value());
    size_t inputs = 0, options = 0;
    for (const c10::Argument& argument : op->schema().arguments()) {
      const bool optional = argument.type()->kind() == c10::TypeKind::OptionalType;
      const std::string type = argument.type()->str();
      if (type.find("Tensor") != std::string::npos) {
        ASSERT_LT(inputs, entry.inputs.size());
        EXPECT_EQ(entry.inputs[inputs].name, argument.name());
        EXPECT_EQ(entry.inputs[inputs].required, !optional);
        ++inputs;
      } else {
        ASSERT_LT(options, entry.options.size());
        EXPECT_EQ(entry.options[options].name, argument.name());
        EXPECT_EQ(entry.options[options].default_value == "none", optional);
        ++options;
      }
    }
    EXPECT_EQ(inputs, entry.inputs.size());
    EXPECT_EQ(options, entry.options.size());
    EXPECT_NE(list_ops().find(entry.name + ": "), std::string::npos);
  }
  EXPECT_EQ(list_ops_json().size(), op_table().size());
}

TEST_F(OpCommandTest, RunsEveryOperatorInTheStoredDtype) {
  const at::Tensor x = at::randn({2, 4, 12}).to(at::kBFloat16),
                   w = at::randn({12}).to(at::kBFloat16);
  const at::Tensor a = at::randn({2, 12}), b = at::randn({2, 12}), cos = at::randn({4, 3}),
                   sin = at::randn({4, 3});
  const at::Tensor heads = x.unflatten(2, {2, 6});
  EXPECT_TRUE(at::equal(result(run("rms_norm", {{"x", x}, {"weight", w}})), rms_norm(x, w, 1e-6)));
  EXPECT_TRUE(at::equal(result(run("rms_norm", {{"x", x}}, {"eps=0.5"})), rms_norm(x, {}, 0.5)));
  EXPECT_TRUE(
      at::equal(result(run("layer_norm", {{"x", x}}, {"eps=1e-3"})), layer_norm(x, {}, {}, 1e-3)));
  EXPECT_TRUE(at::equal(result(run("rope", {{"x", heads}, {"cos", cos}, {"sin", sin}})),
                        rope(heads, cos, sin)));
  EXPECT_TRUE(
      at::equal(result(run("rms_norm_rope", {{"x", x}, {"weight", w}, {"cos", cos}, {"sin", sin}})),
                rms_norm_rope(x, w, cos, sin, 1e-6)));
  EXPECT_TRUE(at::equal(result(run("layer_norm_modulate", {{"x", x}, {"scale", a}, {"shift", b}})),
                        layer_norm_modulate(x, a, b, 1e-6)));
  EXPECT_TRUE(at::equal(result(run("gate_residual", {{"x", x}, {"y", x}, {"gate", a}})),
                        gate_residual(x, x, a)));
  const at::Tensor q = at::randn({1, 2, 5, 8}), kv = at::randn({1, 2, 7, 8});
  const at::Tensor expected = at::scaled_dot_product_attention(q, kv, kv, {}, 0.0, false, 0.3);
  EXPECT_TRUE(at::allclose(
      result(run("attention", {{"q", q}, {"k", kv}, {"v", kv}}, {"scale=0.3"})), expected));
  // Two blocks of queries, the first of which sees the first three keys.
  const at::Tensor mask = at::tensor({1, 0, 0, 1, 1, 1}, at::kByte).view({1, 1, 2, 3});
  const at::Tensor rows = at::arange(5).view({5, 1}), keys = at::arange(7).view({1, 7});
  EXPECT_TRUE(
      at::allclose(result(run("attention", {{"q", q}, {"k", kv}, {"v", kv}, {"block_mask", mask}},
                              {"block=4,3", "executor=cpu"})),
                   at::scaled_dot_product_attention(q, kv, kv, rows.ge(4).logical_or(keys.lt(3)))));
  const std::vector<std::string> window = {"size=5", "window=3", "stride=1", "dilation=1",
                                           "causal=true"};
  const at::Tensor near = (rows - rows.t()).abs().lt(3).tril();
  EXPECT_TRUE(
      at::allclose(result(run("neighborhood_attention", {{"q", q}, {"k", q}, {"v", q}}, window)),
                   at::scaled_dot_product_attention(q, q, q, near)));
}

TEST_F(OpCommandTest, BadInputIsRefusedByName) {
  const at::Tensor x = at::randn({2, 8});
  expect_error(run("rms_nrom", {{"x", x}}), ErrorCode::usage, "rms_norm");
  expect_error(run("rms_norm", {{"y", x}}), ErrorCode::bad_data, "'x' is missing");
  expect_error(run("rms_norm", {{"x", x}, {"wieght", x}}), ErrorCode::bad_data, "'wieght'");
  expect_error(run("rms_norm", {{"x", x}, {"weight", x}}), ErrorCode::bad_data, "'weight'");
  expect_error(run("rms_norm", {{"x", x.to(at::kLong)}}), ErrorCode::bad_data, "'x'");
  expect_error(run("attention", {{"q", x}, {"k", x}, {"v", x}}), ErrorCode::bad_data, "got [2, 8]");
  const at::Tensor q = at::randn({1, 1, 4, 8});
  const TensorMap qkv = {{"q", q}, {"k", q}, {"v", q}};
  for (const char* setting : {"block=4", "block=4,x", "is_causal=1", "executor=abacus"}) {
    expect_error(run("attention", qkv, {setting}), ErrorCode::usage, "");
  }
  expect_error(run("neighborhood_attention", qkv), ErrorCode::usage, "needs size=");
  for (const char* setting : {"eps", "=1", "eps=", "eps=1x", "eps=nan", "epsilon=1", "eps=1e999"}) {
    expect_error(run("rms_norm", {{"x", x}}, {setting}), ErrorCode::usage, "--set");
  }
  OpRun missing = run("rms_norm", {{"x", x}});
  missing.in = folder_.path / "nothing.safetensors";
  expect_error(missing, ErrorCode::bad_data, "nothing.safetensors");
}

TEST_F(OpCommandTest, AnExistingOutputStays) {
  OpRun asked = run("rms_norm", {{"x", at::randn({2, 8})}});
  std::ofstream(asked.out) << "kept";
  asked.overwrite = false;
  try {
    run_op(asked);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::conflict);
  }
  EXPECT_EQ(read_file(asked.out, 100), "kept");
}

}  // namespace
}  // namespace fovea::apps
