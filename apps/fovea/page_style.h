#pragma once

#include <string_view>

// Style and behaviour of the page that `fovea compare` writes; nothing is loaded from elsewhere.
namespace fovea::apps {

inline constexpr std::string_view kPageStyle = R"css(
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#171b22;--dim:#5d6674;
--line:#dfe3e9;--c0:#7b8494;--c1:#2463eb;--c2:#d9480f;--c3:#0f8a5f;--c4:#a21caf;--c5:#b58900;
--c6:#0e7490;--c7:#be123c}
@media(prefers-color-scheme:dark){:root{--page:#111317;--card:#1a1d23;--text:#e8ebf0;--dim:#9aa4b2;
--line:#2c313a;--c0:#98a2b3;--c1:#6c9bff;--c2:#ff8f5c;--c3:#4ecb9a;--c4:#e27bf0;--c5:#e3b93f;
--c6:#4cc3de;--c7:#ff7d96}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:25px;line-height:1.25;margin:0 0 4px}
h2{font-size:18px;line-height:1.35;margin:36px 0 12px}
p{margin:0 0 12px}.dim{color:var(--dim)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.wide{overflow-x:auto;padding:4px 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}
th{font-weight:600;color:var(--dim);font-size:13px;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:150px;position:sticky;
left:0;background:var(--card)}
.swatch{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}
.plots{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.plots h3{font-size:14px;margin:0 0 6px}
.plot{width:100%;height:auto;display:block;font-size:12px;fill:var(--dim)}
.grid{stroke:var(--line);fill:none}.strong{stroke:var(--dim);stroke-dasharray:3 4}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.dot{stroke:var(--card);stroke-width:2}
.part1{opacity:.45}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 12px;font-size:14px}
.videos{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr))}
figure.card{margin:0;padding:0;overflow:hidden}
figure video{display:block;width:100%;background:#000}
figcaption{padding:9px 12px 11px;font-size:14px;overflow-wrap:anywhere}
.controls{display:flex;align-items:center;gap:12px;margin:0 0 12px}
button{font:inherit;min-width:84px;padding:6px 14px;border-radius:8px;border:1px solid var(--line);
background:var(--card);color:var(--text);cursor:pointer}
input[type=range]{flex:1;min-width:0;accent-color:var(--c1)}
details{margin-top:14px}summary{cursor:pointer;color:var(--dim)}
details img{display:block;max-width:none;border-radius:8px;margin-top:10px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;margin:8px 0 0}
@media(max-width:600px){main{padding:18px 12px 40px}h1{font-size:21px}
.videos{grid-template-columns:repeat(2,minmax(0,1fr));gap:8px}figcaption{padding:7px 8px 9px}
.plot{font-size:16px}th,td{padding:7px 9px}
th:first-child,td:first-child{min-width:132px;font-size:14px;overflow-wrap:anywhere}}
)css";

// The videos of a prompt play together: one button, one slider.
inline constexpr std::string_view kPageScript = R"js(
for (const section of document.querySelectorAll('.prompt')) {
  const videos = [...section.querySelectorAll('video')];
  if (!videos.length) continue;
  const button = section.querySelector('button'), slider = section.querySelector('input');
  let playing = false;
  const together = time => videos.forEach(video => { video.currentTime = time; });
  const play = on => {
    playing = on;
    button.textContent = on ? 'Pause' : 'Play';
    if (on) together(videos[0].currentTime);
    videos.forEach(video => on ? video.play().catch(() => {}) : video.pause());
  };
  button.onclick = () => play(!playing);
  slider.oninput = () => { play(false); together(slider.value * (videos[0].duration || 0)); };
  videos[0].ontimeupdate = () => {
    if (playing) slider.value = videos[0].currentTime / (videos[0].duration || 1);
  };
  videos[0].onended = () => { together(0); play(true); };
  new IntersectionObserver(entries => {
    if (!matchMedia('(prefers-reduced-motion: reduce)').matches) play(entries[0].isIntersecting);
  }, {threshold: 0.3}).observe(section.querySelector('.videos'));
}
)js";

}  // namespace fovea::apps
