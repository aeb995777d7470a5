#include <cstdint>

extern "C" {
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
}

#include <algorithm>

#include "core/check.h"
#include "core/media/ffmpeg_common.h"
#include "core/media/gif_blocks.h"
#include "core/media/video_formats.h"

namespace fovea {
namespace {

using namespace ffmpeg;

constexpr AVRational kCentisecond{1, 100};

// When frame `index` begins, in 1/100 s, rounded half up.
int64_t start_time(int64_t index, Rational fps) {
  return (index * 200 * fps.den + fps.num) / (2 * fps.num);
}

/// FFmpeg's muxer writes through this into the file, and the comment is put in on the way.
class GifSink {
 public:
  GifSink(AtomicFile& file, const std::string& comment) : file_(file) {
    if (!comment.empty()) comment_ = gif_comment_block(comment);
    constexpr int kBufferBytes = 1 << 16;
    auto* buffer = static_cast<unsigned char*>(av_malloc(kBufferBytes));
    context_ = avio_alloc_context(buffer, kBufferBytes, 1, this, nullptr, write, nullptr);
    if (!context_) av_free(buffer);
    require(context_ != nullptr, ErrorCode::resource, file.path().string(), "no memory");
  }
  ~GifSink() {
    av_freep(&context_->buffer);
    avio_context_free(&context_);
  }
  GifSink(const GifSink&) = delete;
  GifSink& operator=(const GifSink&) = delete;

  AVIOContext* context() { return context_; }

  /// Throws what went wrong inside the muxer's calls, if anything did.
  void check() {
    avio_flush(context_);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static int write(void* self, uint8_t* bytes, int size) {
    return static_cast<GifSink*>(self)->append(
        {reinterpret_cast<const char*>(bytes), static_cast<size_t>(size)});
  }

  // An exception must not pass through FFmpeg's frames.
  int append(std::string_view bytes) {
    try {
      if (!comment_.empty()) {
        head_ += bytes;
        const size_t position = gif_comment_position(head_);
        if (position == 0) return static_cast<int>(bytes.size());
        head_.insert(position, comment_);
        comment_.clear();
        file_.write(head_);
      } else {
        file_.write(bytes);
      }
    } catch (...) {
      error_ = std::current_exception();
      return AVERROR(EIO);
    }
    return static_cast<int>(bytes.size());
  }

  AtomicFile& file_;
  std::string comment_;  // empty once it is written
  std::string head_;
  std::exception_ptr error_;
  AVIOContext* context_ = nullptr;
};

struct FreeOutput {
  void operator()(AVFormatContext* output) const { avformat_free_context(output); }
};

class GifWriter final : public VideoWriter {
 public:
  explicit GifWriter(const VideoOptions& options)
      : VideoWriter(options),
        file_(options.path, options.overwrite),
        sink_(file_, options.comment) {
    open_filters();
    open_encoder();
    open_output();
    input_ = make_frame(options.width, options.height, AV_PIX_FMT_RGB32);
    packet_ = make_packet();
  }

 private:
  // Each frame gets its own palette: frames stream through, and none is kept.
  void open_filters() {
    graph_.reset(avfilter_graph_alloc());
    require(graph_ != nullptr, ErrorCode::resource, options_.path.string(), "no memory");
    graph_->nb_threads = 1;
    const std::string source =
        str("video_size=", options_.width, "x", options_.height,
            ":pix_fmt=", static_cast<int>(AV_PIX_FMT_RGB32), ":time_base=1/100:pixel_aspect=1/1");
    AVFilterContext* sink = nullptr;
    check_write(avfilter_graph_create_filter(&source_, avfilter_get_by_name("buffer"), "in",
                                             source.c_str(), nullptr, graph_.get()),
                options_.path, "start the palette filter");
    check_write(avfilter_graph_create_filter(&sink, avfilter_get_by_name("buffersink"), "out",
                                             nullptr, nullptr, graph_.get()),
                options_.path, "start the palette filter");
    sink_filter_ = sink;
    const char* chain =
        "[in]split[a][b];[a]palettegen=stats_mode=single:reserve_transparent=0[p];"
        "[b][p]paletteuse=new=1:dither=sierra2_4a[out]";
    AVFilterInOut* inputs = avfilter_inout_alloc();
    AVFilterInOut* outputs = avfilter_inout_alloc();
    int code = AVERROR(ENOMEM);
    if (inputs && outputs) {
      *outputs = {av_strdup("in"), source_, 0, nullptr};
      *inputs = {av_strdup("out"), sink, 0, nullptr};
      code = avfilter_graph_parse_ptr(graph_.get(), chain, &inputs, &outputs, nullptr);
    }
    avfilter_inout_free(&inputs);
    avfilter_inout_free(&outputs);
    check_write(code, options_.path, "start the palette filter");
    check_write(avfilter_graph_config(graph_.get(), nullptr), options_.path,
                "start the palette filter");
  }

  void open_encoder() {
    const AVCodec* encoder = avcodec_find_encoder(AV_CODEC_ID_GIF);
    require(encoder != nullptr, ErrorCode::usage, options_.path.string(),
            "the FFmpeg libraries have no GIF encoder");
    codec_.reset(avcodec_alloc_context3(encoder));
    require(codec_ != nullptr, ErrorCode::resource, options_.path.string(), "no memory");
    codec_->width = options_.width;
    codec_->height = options_.height;
    codec_->pix_fmt = AV_PIX_FMT_PAL8;
    codec_->time_base = kCentisecond;
    codec_->thread_count = 1;
    codec_->flags |= AV_CODEC_FLAG_BITEXACT;
    check_write(avcodec_open2(codec_.get(), encoder, nullptr), options_.path,
                "start the GIF encoder");
  }

  void open_output() {
    AVFormatContext* output = nullptr;
    check_write(avformat_alloc_output_context2(&output, nullptr, "gif", nullptr), options_.path,
                "start the GIF file");
    output_.reset(output);
    output->pb = sink_.context();
    output->flags |= AVFMT_FLAG_BITEXACT | AVFMT_FLAG_CUSTOM_IO;
    AVStream* stream = avformat_new_stream(output, nullptr);
    require(stream != nullptr, ErrorCode::resource, options_.path.string(), "no memory");
    check_write(avcodec_parameters_from_context(stream->codecpar, codec_.get()), options_.path,
                "start the GIF file");
    stream->time_base = kCentisecond;
    // The muxer cannot know how long the last frame is shown.
    const int64_t last =
        start_time(options_.frames, options_.fps) - start_time(options_.frames - 1, options_.fps);
    AVDictionary* settings = nullptr;
    av_dict_set_int(&settings, "final_delay", last, 0);
    const int code = avformat_write_header(output, &settings);
    const int unused = av_dict_count(settings);
    av_dict_free(&settings);
    sink_.check();
    check_write(code, options_.path, "write the GIF header");
    FOVEA_ASSERT(unused == 0);
  }

  void write_frame(const uint8_t* rgb, int64_t index) override {
    check_write(av_frame_make_writable(input_.get()), options_.path, "make a frame");
    for (int y = 0; y < options_.height; ++y) {
      auto* row = reinterpret_cast<uint32_t*>(input_->data[0] +
                                              static_cast<int64_t>(y) * input_->linesize[0]);
      for (int x = 0; x < options_.width; ++x, rgb += 3) {
        row[x] = 0xFF000000u | uint32_t{rgb[0]} << 16 | uint32_t{rgb[1]} << 8 | rgb[2];
      }
    }
    input_->pts = start_time(index, options_.fps);
    check_write(av_buffersrc_add_frame_flags(source_, input_.get(), AV_BUFFERSRC_FLAG_KEEP_REF),
                options_.path, "choose a palette");
    drain_filters();
  }

  void drain_filters() {
    while (true) {
      Frame frame = make_frame();
      const int code = av_buffersink_get_frame(sink_filter_, frame.get());
      if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
      check_write(code, options_.path, "choose a palette");
      encode(frame.get());
    }
  }

  void encode(const AVFrame* frame) {
    check_write(avcodec_send_frame(codec_.get(), frame), options_.path, "encode");
    while (true) {
      const int code = avcodec_receive_packet(codec_.get(), packet_.get());
      if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
      check_write(code, options_.path, "encode");
      packet_->stream_index = 0;
      const int written = av_write_frame(output_.get(), packet_.get());
      av_packet_unref(packet_.get());
      sink_.check();
      check_write(written, options_.path, "write");
    }
  }

  VideoResult finish_file() override {
    check_write(av_buffersrc_add_frame_flags(source_, nullptr, 0), options_.path,
                "choose a palette");
    drain_filters();
    encode(nullptr);
    const int code = av_write_trailer(output_.get());
    sink_.check();
    check_write(code, options_.path, "write the GIF trailer");
    file_.close_descriptor();
    const Rational fps = reduced(options_.frames * 100, start_time(options_.frames, options_.fps));
    verify_video(file_.temporary_path(), options_, fps);
    file_.commit();
    VideoResult result{.files = {options_.path},
                       .format = "gif",
                       .codec = "gif",
                       .pixel_format = "pal8",
                       .fps = fps};
    if (fps != options_.fps) {
      result.notes.push_back(str("GIF delays are whole 1/100 s: ", fps.text(),
                                 " frames a second instead of ", options_.fps.text()));
    }
    return result;
  }

  AtomicFile file_;  // outlives what writes to it
  GifSink sink_;
  FilterGraph graph_;
  AVFilterContext* source_ = nullptr;
  AVFilterContext* sink_filter_ = nullptr;
  Codec codec_;
  std::unique_ptr<AVFormatContext, FreeOutput> output_;
  Frame input_;
  Packet packet_;
};

}  // namespace

std::unique_ptr<VideoWriter> make_gif_writer(const VideoOptions& options) {
  quiet();
  return std::make_unique<GifWriter>(options);
}

}  // namespace fovea
