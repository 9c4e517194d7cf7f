
const found = JSON.parse(at("found").textContent);
const { figures: quality, examples } = found;
const { read, dropped, kept } = quality;
const REASONS = [
  ["evaluation", "bad", "words of an evaluation text"],
  ["near", "forward", "near repeats"],
  ["exact", "optimizer", "exact repeats"],
];
const size = (bytes) => {
  const unit = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([least]) => bytes >= least);
  return unit ? `${digits(bytes / unit[0], 1)} ${unit[1]}` : `${digits(bytes)} bytes`;
};
const binary = (bytes) => {
  const [unit, name] = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "bytes"]].find(([least]) => bytes >= least);
  return `${digits(bytes / unit)} ${name}`;
};
const share = (part, whole) => percent(whole ? part / whole : 0);
const place = ({ file, line }) => (line ? `${file}, line ${digits(line)}` : file);
const origin = ({ of_file, of_line }) => place({ file: of_file, line: of_line });

/* ---- totals ---- */

function totals() {
  const splits = Object.entries(found.splits);
  const tokens = splits.reduce((sum, [, each]) => sum + each.tokens, 0);
  document.title = `Text of ${found.folder}`;
  at("name").textContent = found.folder;
  at("setting").textContent = splits
    .map(([name, each]) => `${name}: ${digits(each.tokens)} tokens in ${digits(each.documents)} documents`)
    .join("; ");
  boxes("figures", [
    ["documents read", digits(read.documents)],
    ["text read", size(read.bytes)],
    ["documents kept", digits(kept.documents)],
    ["text kept", size(kept.bytes)],
    ["left out, of the text", share(read.bytes - kept.bytes, read.bytes)],
    ["tokens", digits(tokens)],
    ["vocabulary", digits(found.vocabulary)],
    ["bytes per token", digits(kept.bytes / Math.max(1, tokens), 2)],
  ]);
}

function fate() {
  const parts = [["kept", "pairs", "kept", kept], ...REASONS.map(([key, ...rest]) => [key, ...rest, dropped[key]])];
  legend("fate-legend", parts.map(([, name, words]) => [name, words]));
  for (const [unit, words] of [["documents", digits], ["bytes", size]]) {
    const values = parts.map(([, name, what, each]) => [name, each[unit], `${what}: ${words(each[unit])}`]);
    bar(at("fate"), unit === "bytes" ? "text" : unit, values, Math.max(1, read[unit]), words(read[unit]));
  }
  table("fate-table", ["", "documents", "share", "text", "share"], parts.map(([, , words, each]) =>
    [words, digits(each.documents), share(each.documents, read.documents), size(each.bytes), share(each.bytes, read.bytes)]));
}

/* ---- what was left out ---- */

/* Rows of the first documents of a reason, or no section. */
function left(reason, note, head, row, words, last) {
  const first = examples.dropped[reason];
  if (!first.length) return at(`${reason}-section`).remove();
  const all = dropped[reason].documents;
  const some = all > first.length ? `The first ${first.length} of ${digits(all)}; dropped.jsonl has all. ` : "";
  at(`${reason}-note`).textContent = some + note;
  table(reason, head, first.map(row), words, last);
}

function examplesOfDropped() {
  const { ngram, near } = quality.options;
  const texts = quality.evaluation;
  const { common } = examples;
  if (common.length) table("common", ["texts with words that many documents have", "documents"], common.map((each) => [place(each), digits(each.documents)]));
  else at("common").remove();
  const short = texts?.too_short ? ` ${digits(texts.too_short)} are shorter than that, and were not looked for.` : "";
  left("evaluation", texts ? `${ngram} words in a row that are in one of ${digits(texts.texts)} texts, of which ${digits(texts.found)} were found.${short} ${digits(texts.common)} more such runs are in more than ${quality.options.common} documents each, and were passed over.` : "",
    ["left out", "has the words", "of"], (each) => [place(each), each.words, origin(each)], 3, 0);
  left("near", `Estimated similarity of ${near} and more.`,
    ["left out", "repeats", "similarity", "text"], (each) => [place(each), origin(each), digits(each.similarity, 2), size(each.bytes)], 2, 0);
  left("exact", "But for line ends.",
    ["left out", "repeats", "text"], (each) => [place(each), origin(each), size(each.bytes)], 2, 0);
  // Paths may be long.
  for (const cell of document.querySelectorAll("#evaluation td, #near td:not(.number), #exact td:not(.number)")) cell.className = "words";
}

/* ---- what was kept ---- */

function lengths() {
  const bins = kept.histogram;
  for (const [id, unit, whole, words] of [["by-documents", "documents", kept.documents, digits], ["by-bytes", "total", kept.bytes, size]]) {
    const most = Math.max(...bins.map((bin) => bin[unit]), 1);
    for (const bin of bins)
      bar(at(id), binary(bin.from), [["backward", bin[unit], `${words(bin[unit])}, ${share(bin[unit], whole)}`]], most, words(bin[unit]));
  }
  const rows = [["bytes", kept.bytes_of_documents],
    ...Object.entries(found.tokens_of_documents).map(([split, each]) => [`tokens, ${split}`, each])]
    .filter(([, each]) => Object.keys(each).length);
  if (!rows.length) return;
  const keys = Object.keys(rows[0][1]);
  const heads = keys.map((key) => ({ 0: "least", 50: "median", 100: "most", mean: "mean" })[key] ?? `${key} %`);
  table("percentiles", ["documents up to", ...heads], rows.map(([name, each]) =>
    [name, ...keys.map((key) => digits(each[key], key === "mean" ? 1 : 0))]));
}

function shares(id, counts, colour, most = 8) {
  const entries = Object.entries(counts).filter(([, count]) => count);
  const whole = entries.reduce((sum, [, count]) => sum + count, 0);
  entries.sort((a, b) => b[1] - a[1]);
  const rest = entries.slice(most).reduce((sum, [, count]) => sum + count, 0);
  const rows = rest ? [...entries.slice(0, most), [`${entries.length - most} more`, rest]] : entries;
  for (const [name, count] of rows)
    bar(at(id), name, [[colour, count, digits(count)]], whole, percent(count / whole, 2));
}

const languageName = (code) => {
  if (code === "zxx") return "no language";
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code);
  } catch {
    return code;
  }
};

function kinds() {
  shares("scripts", kept.characters, "pairs");
  const languages = Object.entries(kept.languages).map(([code, count]) => [languageName(code), count]);
  at("languages-note").textContent = languages.length
    ? "Share of documents, by their first 500 characters, as py3langid tells them; code often counts as English."
    : "Not told: py3langid is not installed.";
  shares("languages", Object.fromEntries(languages), "weight");
}

function documents() {
  table("largest", ["document", "text", "share"], examples.largest.map((each) =>
    [place(each), size(each.bytes), share(each.bytes, kept.bytes)]), 1, 0);
  for (const sample of examples.samples) {
    const figure = add(at("samples"), "figure");
    add(figure, "figcaption", place(sample));
    add(figure, "pre", sample.text);
  }
}

totals();
fate();
examplesOfDropped();
lengths();
kinds();
documents();
