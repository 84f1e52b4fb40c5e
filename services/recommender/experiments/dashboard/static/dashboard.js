/* Draws the charts from the JSON beside them. Everything here also stands in a table: without this file nothing is lost.
   Variants differ by colour, marker and dash, never by colour alone. */
"use strict";
(() => {
  const MARKERS = ["circle", "diamond", "square", "triangle-up"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const PATTERNS = ["", "/", "x", "."];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (place) => css("--series-" + ((place % 4) + 1));
  const faded = (hex, share) => hex + Math.round(share * 255).toString(16).padStart(2, "0");
  // Wide intervals are clipped by the axis, so an open end is drawn far outside of it.
  const FAR = 1e6;
  const open = ([low, high]) => [low === null ? -FAR : low, high === null ? FAR : high];

  // What A4 and Letter have between margins and frame; the screen's width would be cut off.
  const PAPER_WIDTH = 660;

  function layout(more) {
    const width = document.documentElement.classList.contains("paper") ? PAPER_WIDTH : undefined;
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--soft"), linecolor: css("--line"), automargin: true, fixedrange: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 12, b: 8 },
      font: { color: css("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      width, hovermode: "closest", ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
    };
  }

  function extent(rows) {
    const numbers = rows.flatMap((row) => [row.lift, ...row.fixed, ...row.sequential]).filter((one) => one !== null);
    const low = Math.min(0, ...numbers), high = Math.max(0, ...numbers), room = (high - low) * 0.08 || 1;
    return [low - room, high + room];
  }

  function forest(data) {
    const metrics = [...new Set(data.rows.map((row) => row.metric))];
    const traces = [];
    const compared = data.variants.filter((variant) => data.rows.some((row) => row.variant === variant));
    compared.forEach((variant, line) => {
      const place = data.variants.indexOf(variant), rows = data.rows.filter((row) => row.variant === variant);
      const shift = compared.length > 1 ? (line / (compared.length - 1) - 0.5) * 0.4 : 0;
      const y = rows.map((row) => metrics.indexOf(row.metric) + shift);
      const bar = (ends, width, name) => ({
        x: rows.flatMap((row) => [...open(ends(row)), null]), y: y.flatMap((one) => [one, one, null]), mode: "lines",
        line: { color: colour(place), width }, name, legendgroup: variant, showlegend: false, hoverinfo: "skip",
      });
      traces.push(bar((row) => row.sequential, 1.5, variant), bar((row) => row.fixed, 5, variant), {
        x: rows.map((row) => row.lift), y, mode: "markers", name: variant, legendgroup: variant,
        marker: { color: css("--card"), size: 11, symbol: MARKERS[place % 4], line: { color: colour(place), width: 3 } },
        text: rows.map((row) => row.metric), hovertemplate: "%{text}<br>%{x:+.2f} %<extra>%{fullData.name}</extra>",
      });
    });
    return [traces, layout({
      height: 110 + metrics.length * Math.max(46, 26 * compared.length),
      xaxis: { title: { text: data.words.lift_axis }, range: extent(data.rows), zeroline: true, zerolinewidth: 2 },
      yaxis: { tickvals: metrics.map((_, n) => n), ticktext: metrics, range: [metrics.length - 0.5, -0.5], showgrid: false, zeroline: false },
    })];
  }

  function lift(data) {
    const traces = [], names = Object.keys(data.series);
    names.forEach((variant) => {
      const place = data.variants.indexOf(variant), rows = data.series[variant], days = rows.map((row) => row.day);
      const band = (ends, share) => {
        const edge = (side) => rows.map((row) => open(ends(row))[side]);
        const line = { width: 0, color: colour(place) };
        const common = { x: days, mode: "lines", line, legendgroup: variant, showlegend: false, hoverinfo: "skip" };
        traces.push({ ...common, y: edge(0) }, { ...common, y: edge(1), fill: "tonexty", fillcolor: faded(colour(place), share) });
      };
      band((row) => row.sequential, 0.14);
      band((row) => row.fixed, 0.28);
      traces.push({
        x: days, y: rows.map((row) => row.lift), mode: "lines+markers", name: variant, legendgroup: variant,
        line: { color: colour(place), width: 2.5, dash: DASHES[place % 4] }, marker: { symbol: MARKERS[place % 4], size: 7 },
        hovertemplate: "%{x}<br>%{y:+.2f} %<extra>%{fullData.name}</extra>",
      });
    });
    // The first days' bands are so wide that they would flatten all others.
    const late = names.flatMap((name) => data.series[name].slice(Math.min(2, data.series[name].length - 1)));
    return [traces, layout({
      height: 340, showlegend: true,
      xaxis: { type: "date", tickformat: "%Y-%m-%d", nticks: 6 },
      yaxis: { title: { text: data.words.lift_axis }, range: extent(late), zeroline: true, zerolinewidth: 2 },
    })];
  }

  function exposures(data) {
    const traces = Object.keys(data.series).map((variant) => [variant, data.variants.indexOf(variant)]).map(([variant, place]) => ({
      x: data.series[variant].map((row) => row.day), y: data.series[variant].map((row) => row.units), type: "bar", name: variant,
      marker: { color: colour(place), pattern: { fillmode: "overlay", shape: PATTERNS[place % 4], fgcolor: css("--card"), fgopacity: 0.7, size: 7 } },
      hovertemplate: "%{x}<br>%{y}<extra>%{fullData.name}</extra>",
    }));
    return [traces, layout({
      height: 260, barmode: "group", bargap: 0.3,
      xaxis: { type: "date", tickformat: "%Y-%m-%d", nticks: 6 }, yaxis: { title: { text: data.words.units_axis }, tickformat: ",d" },
    })];
  }

  const KINDS = { forest, lift, exposures };
  const options = { displayModeBar: false, responsive: true, showTips: false };

  async function draw() {
    for (const figure of document.querySelectorAll("[data-chart]")) {
      const data = JSON.parse(document.getElementById(figure.dataset.chart).textContent);
      const [traces, shape] = KINDS[data.kind](data);
      await Plotly.react(figure, traces, shape, options);
    }
    document.documentElement.dataset.drawn = "yes";
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const paper = (on) => { document.documentElement.classList.toggle("paper", on); draw(); };
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  draw();
})();
