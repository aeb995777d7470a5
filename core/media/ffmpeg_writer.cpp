#include <cstdint>

extern "C" {
#include <libavutil/cpu.h>
#include <libavutil/pixdesc.h>
}

#include "core/check.h"
#include "core/media/ffmpeg_common.h"
#include "core/media/video_formats.h"

namespace fovea {
namespace {

using namespace ffmpeg;

struct Format {
  const char* name;  // of the container, FFmpeg's and ours
  const char* encoder;
  const char* codec;
  AVPixelFormat pixels;
};

Format format_of(const VideoOptions& options) {
  const std::string ending = options.path.extension().string();
  if (ending.size() == 5) return {"webm", "libvpx-vp9", "vp9", AV_PIX_FMT_YUV420P};
  // H.264's 4:2:0 has no odd sizes other than by cropping, which x264 does not offer.
  const bool odd = options.width % 2 != 0 || options.height % 2 != 0;
  return {"mp4", "libx264", "h264", odd ? AV_PIX_FMT_YUV444P : AV_PIX_FMT_YUV420P};
}

struct CloseOutput {
  void operator()(AVFormatContext* output) const {
    avio_closep(&output->pb);
    avformat_free_context(output);
  }
};
using Output = std::unique_ptr<AVFormatContext, CloseOutput>;

void set_option(AVDictionary** options, const char* key, const char* value) {
  require(av_dict_set(options, key, value, 0) >= 0, ErrorCode::resource, "video options",
          "no memory");
}

// Options that the encoder or muxer did not know stay in the dictionary: a mistake of ours.
struct Options {
  AVDictionary* dictionary = nullptr;
  ~Options() { av_dict_free(&dictionary); }
  void check_used() const { FOVEA_ASSERT(av_dict_count(dictionary) == 0); }
};

class ContainerWriter final : public VideoWriter {
 public:
  explicit ContainerWriter(const VideoOptions& options)
      : VideoWriter(options), format_(format_of(options)), file_(options.path, options.overwrite) {
    file_.close_descriptor();  // FFmpeg opens the file itself: mp4 is read again to move its index
    open_encoder();
    open_output();
    rgb_ = make_frame(options.width, options.height, AV_PIX_FMT_RGB24);
    yuv_ = make_frame(options.width, options.height, format_.pixels);
    packet_ = make_packet();
    open_scaler();
  }

 private:
  void open_encoder() {
    const std::string where = options_.path.string();
    const AVCodec* encoder = avcodec_find_encoder_by_name(format_.encoder);
    require(encoder != nullptr, ErrorCode::usage, where, "the FFmpeg libraries have no encoder '",
            format_.encoder, "'");
    codec_.reset(avcodec_alloc_context3(encoder));
    require(codec_ != nullptr, ErrorCode::resource, where, "no memory for the encoder");
    codec_->width = options_.width;
    codec_->height = options_.height;
    codec_->pix_fmt = format_.pixels;
    codec_->framerate = {static_cast<int>(options_.fps.num), static_cast<int>(options_.fps.den)};
    codec_->time_base = av_inv_q(codec_->framerate);
    codec_->sample_aspect_ratio = {1, 1};
    codec_->color_range = AVCOL_RANGE_MPEG;
    codec_->colorspace = AVCOL_SPC_BT709;
    codec_->color_primaries = AVCOL_PRI_BT709;
    codec_->color_trc = AVCOL_TRC_BT709;
    codec_->chroma_sample_location = AVCHROMA_LOC_LEFT;
    codec_->thread_count = options_.threads;
    codec_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER | AV_CODEC_FLAG_BITEXACT;
    Options settings;
    if (std::string_view(format_.codec) == "h264") {
      set_option(&settings.dictionary, "preset", "medium");
      set_option(&settings.dictionary, "crf", "17");
      // x264's AVX-512 code (of its macroblock tree) gives other bytes for the same frames from one
      // run to the next; its AVX2 code gives the same ones, which every AVX-512 machine has too.
      if (av_get_cpu_flags() & AV_CPU_FLAG_AVX512) {
        set_option(&settings.dictionary, "x264-params", "asm=avx2");
      }
    } else {
      set_option(&settings.dictionary, "deadline", "good");
      set_option(&settings.dictionary, "cpu-used", "4");
      set_option(&settings.dictionary, "crf", "20");
      set_option(&settings.dictionary, "b", "0");  // constant quality, no target rate
    }
    check_write(avcodec_open2(codec_.get(), encoder, &settings.dictionary), options_.path,
                "start the video encoder");
    settings.check_used();
  }

  void open_output() {
    const std::string url = file_url(file_.temporary_path());
    AVFormatContext* output = nullptr;
    check_write(avformat_alloc_output_context2(&output, nullptr, format_.name, url.c_str()),
                options_.path, "start the video file");
    output_.reset(output);
    output->flags |= AVFMT_FLAG_BITEXACT;
    stream_ = avformat_new_stream(output, nullptr);
    require(stream_ != nullptr, ErrorCode::resource, options_.path.string(), "no memory");
    check_write(avcodec_parameters_from_context(stream_->codecpar, codec_.get()), options_.path,
                "start the video file");
    stream_->time_base = codec_->time_base;
    stream_->avg_frame_rate = codec_->framerate;
    stream_->sample_aspect_ratio = {1, 1};
    if (!options_.comment.empty()) {
      set_option(&output->metadata, "comment", options_.comment.c_str());
    }
    Options settings;
    if (std::string_view(format_.name) == "mp4") {
      set_option(&settings.dictionary, "movflags", "+faststart");
    }
    check_write(avio_open2(&output->pb, url.c_str(), AVIO_FLAG_WRITE, nullptr, nullptr),
                options_.path, "open the video file");
    check_write(avformat_write_header(output, &settings.dictionary), options_.path,
                "write the video header");
    settings.check_used();
  }

  void open_scaler() {
    const int flags = SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP | SWS_BITEXACT;
    scaler_.reset(sws_getContext(options_.width, options_.height, AV_PIX_FMT_RGB24, options_.width,
                                 options_.height, format_.pixels, flags, nullptr, nullptr,
                                 nullptr));
    require(scaler_ != nullptr, ErrorCode::internal, options_.path.string(),
            "cannot convert colours at ", options_.width, "x", options_.height);
    const int* matrix = sws_getCoefficients(SWS_CS_ITU709);
    // RGB has full range (1), the video limited range (0); neutral brightness and contrast.
    sws_setColorspaceDetails(scaler_.get(), matrix, 1, matrix, 0, 0, 1 << 16, 1 << 16);
  }

  void write_frame(const uint8_t* rgb, int64_t index) override {
    copy_rgb(rgb, *rgb_);
    check_write(av_frame_make_writable(yuv_.get()), options_.path, "make a frame");
    sws_scale(scaler_.get(), rgb_->data, rgb_->linesize, 0, options_.height, yuv_->data,
              yuv_->linesize);
    yuv_->pts = index;
    encode(yuv_.get());
  }

  // A null frame ends the stream.
  void encode(const AVFrame* frame) {
    check_write(avcodec_send_frame(codec_.get(), frame), options_.path, "encode");
    while (true) {
      const int code = avcodec_receive_packet(codec_.get(), packet_.get());
      if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
      check_write(code, options_.path, "encode");
      packet_->stream_index = stream_->index;
      packet_->duration = 1;
      av_packet_rescale_ts(packet_.get(), codec_->time_base, stream_->time_base);
      check_write(av_interleaved_write_frame(output_.get(), packet_.get()), options_.path, "write");
      check_write(output_->pb->error, options_.path, "write");
    }
  }

  VideoResult finish_file() override {
    encode(nullptr);
    check_write(av_write_trailer(output_.get()), options_.path, "write the video index");
    check_write(output_->pb->error, options_.path, "write");
    check_write(avio_closep(&output_->pb), options_.path, "close");
    verify_video(file_.temporary_path(), options_, options_.fps);
    file_.commit();
    VideoResult result{.files = {options_.path},
                       .format = format_.name,
                       .codec = format_.codec,
                       .pixel_format = av_get_pix_fmt_name(format_.pixels),
                       .fps = options_.fps};
    if (format_.pixels == AV_PIX_FMT_YUV444P) {
      result.notes.push_back(str("odd size ", options_.width, "x", options_.height,
                                 " kept by H.264 4:4:4, which some players do not show"));
    }
    return result;
  }

  Format format_;
  AtomicFile file_;  // outlives what writes to it
  Codec codec_;
  Output output_;
  AVStream* stream_ = nullptr;
  Frame rgb_, yuv_;
  Packet packet_;
  Scaler scaler_;
};

}  // namespace

std::unique_ptr<VideoWriter> make_container_writer(const VideoOptions& options) {
  quiet();
  return std::make_unique<ContainerWriter>(options);
}

}  // namespace fovea
