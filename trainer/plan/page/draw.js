const plan = JSON.parse(at("plan").textContent);

/* ---- figures ---- */

function figures() {
  const cost = plan.gpu_hours;
  document.title = `Plan of ${plan.name}`;
  at("name").textContent = plan.name;
  at("setting").textContent = plan.setting;
  const list = [
    ["step", `${digits(plan.step_seconds, 2)} s`],
    ["MFU, causal", percent(plan.mfu.causal)],
    ["MFU, non-causal", percent(plan.mfu.non_causal)],
    ["tokens per second and GPU", digits(plan.tokens_per_second_per_gpu)],
    ["tokens per day", `${digits(plan.tokens_per_day / 1e9, 1)} B`],
    ["parameters", `${digits(plan.parameters.main / 1e9, 1)} B`],
    ["activated per token", `${digits(plan.parameters.activated / 1e9, 1)} B`],
    ["GPU-hours", digits(cost.total)],
    ["days", digits(plan.days, 1)],
    ["dollars", digits(plan.dollars)],
    ["MWh", digits(plan.mwh)],
  ];
  boxes("figures", list);
}

/* ---- bars ---- */

const PARTS = [
  ["forward", "forward", "forward alone"],
  ["pairs", "pairs", "forward and backward together"],
  ["input_gradient_and_backward", "backward", "backward alone"],
  ["weight_gradient", "weight", "weight gradients alone"],
  ["optimizer", "optimizer", "gradient sums and optimizer"],
  ["bubble", "bubble", "bubble"],
];
const MEMORY = ["backward", "weight", "optimizer", "input", "forward", "pairs", "bad", "bubble"];

function parts() {
  legend("legend", PARTS.map(([, name, words]) => [name, words]));
  plan.parts_seconds_by_rank.forEach((seconds, rank) => {
    const values = PARTS.map(([key, name, words]) => [name, seconds[key], `${words}: ${digits(seconds[key], 3)} s`]);
    bar(at("parts"), `rank ${rank}`, values, plan.step_seconds, percent(1 - seconds.bubble / plan.step_seconds));
  });
  const mean = plan.parts_seconds;
  table("parts-table", ["mean over ranks", "seconds", "share"],
    PARTS.map(([key, , words]) => [words, digits(mean[key], 3), percent(mean[key] / plan.step_seconds)]));
}

function memory() {
  const { limit, ranks } = plan.memory;
  const names = Object.keys(ranks[0]);
  const total = (rank) => names.reduce((sum, name) => sum + rank[name], 0);
  const most = 1.02 * Math.max(limit, ...ranks.map(total));
  at("memory-note").textContent =
    `GiB per rank when it needs most; the mark is what a GPU has, ${digits(limit, 1)} GiB.`;
  legend("memory-legend", names.map((name, n) => [MEMORY[n], name]));
  ranks.forEach((rank, number) => {
    const values = names.map((name, n) => [MEMORY[n], rank[name], `${name}: ${digits(rank[name], 2)} GiB`]);
    bar(at("memory"), `rank ${number}`, values, most, `${digits(total(rank), 1)} GiB`, limit);
  });
}

/* ---- the timeline ---- */

const KINDS = { F: ["forward", "forward"], B: ["backward", "backward"], I: ["input", "input gradient"], W: ["weight", "weight gradients"] };

class Timeline {
  constructor(canvas, data) {
    this.canvas = canvas;
    this.data = data;
    this.from = 0;
    this.to = data.seconds;
    this.pointers = new Map();
    this.rowHeight = Math.max(14, Math.min(26, 420 / data.ranks.length));
    this.left = 34;
    this.listen();
    this.resize();
  }

  resize() {
    const scale = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.rowHeight * this.data.ranks.length + 24;
    this.canvas.style.height = `${this.height}px`;
    this.canvas.width = Math.round(this.width * scale);
    this.canvas.height = Math.round(this.height * scale);
    this.pen = this.canvas.getContext("2d");
    this.pen.scale(scale, scale);
    this.draw();
  }

  x(time) {
    return this.left + ((time - this.from) / (this.to - this.from)) * (this.width - this.left);
  }

  time(x) {
    return this.from + ((x - this.left) / (this.width - this.left)) * (this.to - this.from);
  }

  draw() {
    const { pen, data } = this;
    const colours = Object.fromEntries(Object.entries(KINDS).map(([kind, [name]]) => [kind, colour(name)]));
    pen.clearRect(0, 0, this.width, this.height);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    data.ranks.forEach((items, rank) => {
      const top = rank * this.rowHeight;
      pen.fillStyle = colour("quiet");
      pen.textAlign = "right";
      pen.fillText(rank, this.left - 6, top + this.rowHeight / 2);
      pen.save();
      pen.beginPath();
      pen.rect(this.left, top, this.width - this.left, this.rowHeight);
      pen.clip();
      for (const item of items) this.drawItem(item, top, colours);
      const [start, end] = data.optimizer[rank] ?? [0, 0];
      this.box(start, end, top + 1, this.rowHeight - 2, colour("optimizer"));
      pen.restore();
    });
    this.axis();
  }

  drawItem([start, end, ...actions], top, colours) {
    if (end < this.from || start > this.to) return;
    const height = (this.rowHeight - 2) / actions.length;
    actions.forEach(([kind, , microBatch], n) => {
      const y = top + 1 + n * height;
      const width = this.box(start, end, y, height, colours[kind]);
      if (width > 14 && height > 9) {
        this.pen.fillStyle = kind === "W" || kind === "B" ? colour("paper") : "#1f2328";
        this.pen.textAlign = "center";
        this.pen.fillText(microBatch, this.x(start) + width / 2, y + height / 2 + 0.5, width - 2);
      }
    });
  }

  box(start, end, y, height, fill) {
    const x = this.x(start);
    const width = this.x(end) - x;
    this.pen.fillStyle = fill;
    this.pen.fillRect(x, y, Math.max(width - (width > 4 ? 0.7 : 0), 0.3), height);
    return width;
  }

  axis() {
    const { pen } = this;
    const y = this.height - 12;
    const rough = (this.to - this.from) / Math.max(2, this.width / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const places = Math.max(0, -Math.floor(Math.log10(step)));
    pen.fillStyle = colour("quiet");
    pen.textAlign = "center";
    for (let t = Math.ceil(this.from / step) * step; t <= this.to; t += step) {
      pen.fillRect(this.x(t), y - 12, 1, 4);
      pen.fillText(`${digits(t, places)} s`, Math.min(Math.max(this.x(t), this.left + 14), this.width - 16), y);
    }
  }

  view(from, to) {
    const whole = this.data.seconds;
    const span = Math.min(Math.max(to - from, whole / 2000), whole);
    this.from = Math.min(Math.max(from, 0), whole - span);
    this.to = this.from + span;
    this.draw();
  }

  zoom(factor, x = (this.left + this.width) / 2) {
    const centre = this.time(x);
    this.view(centre - (centre - this.from) * factor, centre + (this.to - centre) * factor);
  }

  pan(share) {
    const by = share * (this.to - this.from);
    this.view(this.from + by, this.to + by);
  }

  say(x, y) {
    const rank = Math.floor(y / this.rowHeight);
    const time = this.time(x);
    const item = x > this.left && this.data.ranks[rank]?.find(([start, end]) => start <= time && time < end);
    const seconds = (start, end) => `${digits(1e3 * (end - start), 1)} ms from ${digits(start, 4)} s`;
    if (!item) return (at("item").textContent = "\u00a0");
    const [start, end, ...actions] = item;
    const words = actions.map(([kind, stage, microBatch, flow]) =>
      `${KINDS[kind][1]} of micro-batch ${microBatch}, stage ${stage}${this.data.flows > 1 ? `, flow ${flow}` : ""}`);
    at("item").textContent = `rank ${rank}: ${words.join(" beside ")}; ${seconds(start, end)}`;
  }

  listen() {
    const { canvas, pointers } = this;
    const place = (event) => [event.offsetX, event.offsetY];
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(event.deltaX / this.width);
      else this.zoom(Math.exp(event.deltaY / 400), event.offsetX);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place(event));
      this.say(...place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return this.say(...place(event));
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      const now = place(event);
      if (other) {
        const spread = (x) => Math.max(20, Math.abs(x - other[0]));
        this.zoom(spread(before[0]) / spread(now[0]), (now[0] + other[0]) / 2);
      } else this.pan((before[0] - now[0]) / (this.width - this.left));
      pointers.set(event.pointerId, now);
    });
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: () => this.pan(-0.2), ArrowRight: () => this.pan(0.2), "+": () => this.zoom(0.7), "=": () => this.zoom(0.7), "-": () => this.zoom(1.4), 0: () => this.view(0, this.data.seconds) };
      if (!moves[event.key]) return;
      event.preventDefault();
      moves[event.key]();
    });
    const whole = this.data.seconds;
    const buttons = { in: () => this.zoom(0.5), out: () => this.zoom(2), start: () => this.view(0, whole / 6), end: () => this.view((5 * whole) / 6, whole), all: () => this.view(0, whole) };
    for (const button of document.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", () => buttons[button.dataset.zoom]());
    window.addEventListener("resize", () => this.resize());
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }
}

/* ---- tables ---- */

function tables() {
  const hours = plan.gpu_hours;
  const names = { pre_training: "pre-training", context_extension: "context extension", post_training: "post-training", total: "all" };
  const price = plan.price;
  table("cost", ["", "GPU-hours", "days", "dollars"], Object.entries(names).filter(([key]) => hours[key]).map(([key, words]) =>
    [words, digits(hours[key]), digits(hours[key] / plan.gpus / 24, 1), digits(hours[key] * price)]));
  table("stretches", ["", "steps", "sequences", "tokens of each", "step, s", "GPU-hours"], plan.stretches.map((each) =>
    [each.of, digits(each.steps), digits(each.sequences), digits(each.sequence_length), digits(each.step_seconds, 3), digits(each.gpu_hours)]));
  const { keys, rows } = plan.what_if;
  if (!rows.length) at("what-if-section").remove();
  else table("what-if", [...keys, ...plan.what_if.head], rows.map((row) => [...row.values, ...row.figures]), keys.length, 1);
  table("assumptions", null, plan.assumptions, 2);
  at("source").textContent = `${plan.gpu.toUpperCase()}: ${plan.source}`;
  at("config").textContent = plan.config;
}

figures();
parts();
memory();
legend("kinds", [...Object.values(KINDS), ["optimizer", "gradient sums and optimizer"]]);
new Timeline(at("timeline"), plan.timeline);
tables();
