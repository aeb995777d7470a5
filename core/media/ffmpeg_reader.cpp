#include <cstdint>

extern "C" {
#include <libavutil/pixdesc.h>
}

#include <algorithm>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/media/ffmpeg_common.h"
#include "core/media/gif_blocks.h"
#include "core/media/video_formats.h"

namespace fovea {
namespace {

using namespace ffmpeg;

struct CloseInput {
  void operator()(AVFormatContext* input) const { avformat_close_input(&input); }
};
using Input = std::unique_ptr<AVFormatContext, CloseInput>;

struct Container {
  const char* name;     // ours
  const char* demuxer;  // FFmpeg's
};

// By the first bytes, never by FFmpeg's guess: some of its formats open other files.
Container container_of(const fs::path& path) {
  const std::string head = read_head(path, 12);
  if (head.starts_with("GIF8")) return {"gif", "gif"};
  if (head.starts_with("\x1A\x45\xDF\xA3")) return {"webm", "matroska"};
  if (head.size() >= 8 && head.substr(4, 4) == "ftyp") return {"mp4", "mp4"};
  throw Error(ErrorCode::bad_data, path.string(),
              "is no video that can be read: expected mp4, webm or gif");
}

Input open_input(const fs::path& path, const Container& container) {
  const AVInputFormat* demuxer = av_find_input_format(container.demuxer);
  require(demuxer != nullptr, ErrorCode::usage, path.string(),
          "the FFmpeg libraries cannot read the format '", container.demuxer, "'");
  AVDictionary* settings = nullptr;
  av_dict_set(&settings, "protocol_whitelist", "file", 0);
  av_dict_set(&settings, "codec_whitelist",
              "h264,hevc,mpeg4,vp8,vp9,libvpx,libvpx-vp9,libdav1d,av1,gif,mjpeg,png", 0);
  AVFormatContext* input = nullptr;
  const int code = avformat_open_input(&input, file_url(path).c_str(), demuxer, &settings);
  av_dict_free(&settings);
  check_read(code, path, "open the video");
  return Input(input);
}

class FfmpegReader final : public VideoReader {
 public:
  FfmpegReader(const fs::path& path, const VideoLimits& limits)
      : path_(path), limits_(limits), container_(container_of(path)) {
    open();
    describe();
    count_frames();
    check_video_size(info_.width, info_.height, info_.frames, path_.string(), limits_);
    open();  // packets have been read to the end
    packet_ = make_packet();
    decoded_ = make_frame();
  }

  const VideoInfo& info() const override { return info_; }

  bool read(Picture& frame) override {
    throw_if_interrupted();
    if (!next_frame()) return false;
    require(decoded_->width == info_.width && decoded_->height == info_.height, ErrorCode::bad_data,
            path_.string(), "frame ", frames_read_, ": expected ", info_.width, "x", info_.height,
            ", got ", decoded_->width, "x", decoded_->height);
    require(++frames_read_ <= limits_.max_frames, ErrorCode::resource, path_.string(),
            "decodes to more than ", limits_.max_frames, " frames");
    convert(frame);
    av_frame_unref(decoded_.get());
    return true;
  }

 private:
  void open() {
    input_ = open_input(path_, container_);
    check_read(avformat_find_stream_info(input_.get(), nullptr), path_, "read the video's streams");
    const AVCodec* decoder = nullptr;
    stream_ = check_read(av_find_best_stream(input_.get(), AVMEDIA_TYPE_VIDEO, -1, -1, &decoder, 0),
                         path_, "find a video stream");
    for (unsigned i = 0; i < input_->nb_streams; ++i) {
      if (static_cast<int>(i) != stream_) input_->streams[i]->discard = AVDISCARD_ALL;
    }
    const AVCodecParameters& parameters = *input_->streams[stream_]->codecpar;
    check_read(parameters.width > 0 && parameters.height > 0 ? 0 : AVERROR_INVALIDDATA, path_,
               "read the video's size");
    check_video_size(parameters.width, parameters.height, 1, path_.string(), limits_);
    codec_.reset(avcodec_alloc_context3(decoder));
    require(codec_ != nullptr, ErrorCode::resource, path_.string(), "no memory");
    check_read(avcodec_parameters_to_context(codec_.get(), &parameters), path_,
               "start the decoder");
    codec_->max_pixels = int64_t{limits_.max_side} * limits_.max_side;
    codec_->thread_count = 2;
    codec_->err_recognition = AV_EF_CRCCHECK | AV_EF_EXPLODE;
    check_read(avcodec_open2(codec_.get(), decoder, nullptr), path_, "start the decoder");
    at_end_ = false;
  }

  void describe() {
    const AVStream& stream = *input_->streams[stream_];
    info_.format = container_.name;
    info_.codec = avcodec_get_name(stream.codecpar->codec_id);
    const char* pixels = av_get_pix_fmt_name(static_cast<AVPixelFormat>(stream.codecpar->format));
    info_.pixel_format = pixels ? pixels : "unknown";
    info_.width = stream.codecpar->width;
    info_.height = stream.codecpar->height;
    AVRational rate = stream.avg_frame_rate;
    if (rate.num <= 0 || rate.den <= 0) rate = stream.r_frame_rate;
    if (rate.num <= 0 || rate.den <= 0) rate = {1, 1};
    info_.fps = reduced(rate.num, rate.den);
    for (const AVDictionary* tags : {input_->metadata, stream.metadata}) {
      const AVDictionaryEntry* tag = av_dict_get(tags, "comment", nullptr, 0);
      if (tag && info_.comment.empty()) info_.comment = tag->value;
    }
  }

  void count_frames() {
    if (info_.format == "gif") {
      const GifInfo gif = read_gif(path_);
      info_.frames = gif.frames;
      info_.comment = gif.comment;
      if (gif.delay_cs > 0 && gif.frames > 0) info_.fps = reduced(gif.frames * 100, gif.delay_cs);
    } else {
      const Packet packet = make_packet();
      while (read_packet(*packet)) {
        throw_if_interrupted();
        // Packets that only feed later frames are not shown.
        const bool shown = !(packet->flags & AV_PKT_FLAG_DISCARD);
        av_packet_unref(packet.get());
        if (shown) ++info_.frames;
        require(info_.frames <= limits_.max_frames, ErrorCode::resource, path_.string(),
                "has more than ", limits_.max_frames, " frames");
      }
    }
    require(info_.frames > 0, ErrorCode::bad_data, path_.string(), "has no video frames");
    info_.seconds = static_cast<double>(info_.frames) / info_.fps.value();
  }

  // The next packet of the video stream; false at the end.
  bool read_packet(AVPacket& packet) {
    while (true) {
      const int code = av_read_frame(input_.get(), &packet);
      if (code == AVERROR_EOF) {
        require(!input_->pb || input_->pb->error >= 0, ErrorCode::bad_data, path_.string(),
                "cannot read the video to its end");
        return false;
      }
      check_read(code, path_, "read the video");
      const bool damaged = packet.flags & AV_PKT_FLAG_CORRUPT;
      if (packet.stream_index == stream_) {
        require(!damaged, ErrorCode::bad_data, path_.string(), "truncated or damaged video");
        return true;
      }
      av_packet_unref(&packet);
    }
  }

  bool next_frame() {
    while (true) {
      const int code = avcodec_receive_frame(codec_.get(), decoded_.get());
      if (code == AVERROR_EOF) return false;
      if (code != AVERROR(EAGAIN)) {
        check_read(code, path_, "decode the video");
        return true;
      }
      FOVEA_ASSERT(!at_end_);
      at_end_ = !read_packet(*packet_);
      const int sent = avcodec_send_packet(codec_.get(), at_end_ ? nullptr : packet_.get());
      av_packet_unref(packet_.get());
      check_read(sent, path_, "decode the video");
    }
  }

  void convert(Picture& picture) {
    const auto format = static_cast<AVPixelFormat>(decoded_->format);
    const int flags = SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_BITEXACT;
    scaler_.reset(sws_getCachedContext(scaler_.release(), info_.width, info_.height, format,
                                       info_.width, info_.height, AV_PIX_FMT_RGB24, flags, nullptr,
                                       nullptr, nullptr));
    require(scaler_ != nullptr, ErrorCode::bad_data, path_.string(),
            "cannot convert the colours of ", info_.pixel_format, " video");
    const bool hd = decoded_->colorspace == AVCOL_SPC_BT709 ||
                    (decoded_->colorspace == AVCOL_SPC_UNSPECIFIED && info_.height >= 720);
    const bool full = decoded_->color_range == AVCOL_RANGE_JPEG;
    sws_setColorspaceDetails(scaler_.get(), sws_getCoefficients(hd ? SWS_CS_ITU709 : SWS_CS_ITU601),
                             full, sws_getCoefficients(SWS_CS_ITU709), 1, 0, 1 << 16, 1 << 16);
    if (!rgb_) rgb_ = make_frame(info_.width, info_.height, AV_PIX_FMT_RGB24);
    const int rows = sws_scale(scaler_.get(), decoded_->data, decoded_->linesize, 0, info_.height,
                               rgb_->data, rgb_->linesize);
    FOVEA_ASSERT(rows == info_.height);
    if (picture.width != info_.width || picture.height != info_.height) {
      picture = make_picture(info_.width, info_.height);
    }
    const size_t row = static_cast<size_t>(info_.width) * 3;
    for (int y = 0; y < info_.height; ++y) {
      std::copy_n(rgb_->data[0] + static_cast<int64_t>(y) * rgb_->linesize[0], row,
                  picture.rgb.data() + y * row);
    }
  }

  fs::path path_;
  VideoLimits limits_;
  Container container_;
  VideoInfo info_;
  Input input_;
  Codec codec_;
  Scaler scaler_;
  Frame decoded_, rgb_;
  Packet packet_;
  int stream_ = -1;
  int64_t frames_read_ = 0;
  bool at_end_ = false;
};

}  // namespace

std::unique_ptr<VideoReader> make_ffmpeg_reader(const fs::path& path, const VideoLimits& limits) {
  quiet();
  return std::make_unique<FfmpegReader>(path, limits);
}

}  // namespace fovea
