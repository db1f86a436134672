"use strict";
// Shows the answers of one question set: filtered, sorted, a page at a time. Texts of models are
// only ever set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20, SAMPLES = 3;
  const form = document.getElementById("controls"), list = document.getElementById("list");
  const more = document.getElementById("more"), status = document.getElementById("status");
  let found = [], shown = 0;

  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const add = (label, node, name) => {
    const wrapper = make("label", label);
    node.name = name;
    wrapper.append(node);
    form.append(wrapper);
    return node;
  };
  const choice = (label, name) => add(label, make("select"), name);
  const input = (label, name, type) => {
    const node = add(label, make("input"), name);
    node.type = type;
    return node;
  };
  const fill = (select, options) => {
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => {
      const option = make("option", text);
      option.value = value;
      return option;
    }));
    if (options.some(([value]) => String(value) === before)) select.value = before;
  };

  const set = choice("questions", "set"), source = choice("scores by", "source");
  const arm = choice("arm", "arm"), verdict = choice("verdict", "verdict");
  const category = choice("category", "category"), sort = choice("order", "sort");
  const low = input("score from", "low", "number"), high = input("to", "high", "number");
  const words = input("text contains", "words", "search");

  const current = () => data.sets[Number(set.value)];
  const scoreOf = (answer) => answer.s[Number(source.value)] || [null, "missing"];
  const mean = (values) => values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  const scores = (answers) => answers.map((one) => scoreOf(one)[0]).filter((one) => one !== null);
  const chosen = (question) => arm.value === "" ? question.a : [question.a[Number(arm.value)]];
  const meanOf = (question) => mean(chosen(question).flatMap(scores));

  function change(question) {
    const base = mean(scores(question.a[data.base]));
    const changes = chosen(question).map((answers) => mean(scores(answers)))
      .filter((value) => value !== null && base !== null).map((value) => value - base);
    return changes.length ? changes.reduce((a, b) => Math.abs(b) > Math.abs(a) ? b : a) : null;
  }
  function disagreement(question) {
    const judges = current().sources.map((_, index) => index).filter((index) => current().judges > index);
    const spreads = chosen(question).flat().map((answer) => {
      const values = judges.map((index) => (answer.s[index] || [null])[0]).filter((one) => one !== null);
      return values.length > 1 ? Math.max(...values) - Math.min(...values) : 0;
    });
    return Math.max(0, ...spreads);
  }
  const last = (value, sign) => value === null ? Infinity : sign * value;
  const ORDERS = {
    asked: ["as asked", null],
    lowest: ["lowest score first", (question) => last(meanOf(question), 1)],
    highest: ["highest score first", (question) => last(meanOf(question), -1)],
    fall: ["largest fall from base", (question) => last(change(question), 1)],
    rise: ["largest rise from base", (question) => last(change(question), -1)],
    category: ["category", (question) => question.c],
    judges: ["largest disagreement of judges", (question) => -disagreement(question)],
  };

  function setChanged() {
    const { sources, questions, judges } = current();
    fill(source, sources.map((name, index) => [index, name]));
    fill(category, [["", "all"], ...[...new Set(questions.map((one) => one.c))].sort().map((one) => [one, one || "none"])]);
    const orders = Object.entries(ORDERS).filter(([name]) => (name !== "judges" || judges > 1)
      && (data.arms.length > 1 || !["fall", "rise"].includes(name)));
    fill(sort, orders.map(([name, [text]]) => [name, text]));
    sourceChanged();
  }
  function sourceChanged() {
    const verdicts = new Set(current().questions.flatMap((one) => one.a.flat()).map((one) => scoreOf(one)[1]));
    verdicts.delete("");
    fill(verdict, [["", "all"], ...[...verdicts].map((one) => [one, one])]);
    refresh();
  }

  function matches(answer, text) {
    const [score, said] = scoreOf(answer);
    return (verdict.value === "" || said === verdict.value)
      && (low.value === "" || (score !== null && score >= Number(low.value)))
      && (high.value === "" || (score !== null && score <= Number(high.value)))
      && (text === "" || answer.t.toLowerCase().includes(text));
  }
  function refresh() {
    const text = words.value.trim().toLowerCase();
    const answers = current().questions.filter((one) => category.value === "" || one.c === category.value);
    let count = 0;
    found = [];
    for (const question of answers) {
      const inQuestion = text !== "" && question.q.toLowerCase().includes(text);
      const hits = new Set(chosen(question).flat().filter((one) => matches(one, inQuestion ? "" : text)));
      if (hits.size) found.push({ question, hits });
      count += hits.size;
    }
    const key = ORDERS[sort.value][1];
    if (key) {
      const keys = new Map(found.map((one) => [one, key(one.question)]));
      found.sort((a, b) => keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0);
    }
    status.textContent = `${count} answers to ${found.length} of ${current().questions.length} questions`;
    list.replaceChildren();
    shown = 0;
    showMore();
  }
  function showMore() {
    list.append(...found.slice(shown, shown + PAGE).map(renderQuestion));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown === found.length;
  }

  function renderQuestion({ question, hits }) {
    const node = make("section", undefined, "question"), header = make("header", question.q + " ");
    header.append(make("span", question.c, "soft"));
    const columns = make("div", undefined, "columns");
    question.a.forEach((answers, index) => {
      const column = make("div", undefined, "column"), value = mean(scores(answers));
      column.append(make("h4", data.arms[index] + (answers.length > 1 && value !== null ? ` · mean ${value.toFixed(1)}` : "")));
      const ordered = [...answers].sort((a, b) => hits.has(b) - hits.has(a));
      ordered.slice(0, SAMPLES).forEach((one) => column.append(renderAnswer(one, hits.has(one))));
      if (ordered.length > SAMPLES) {
        const button = make("button", `${ordered.length - SAMPLES} more`);
        button.type = "button";
        button.addEventListener("click", () => button.replaceWith(...ordered.slice(SAMPLES).map((one) => renderAnswer(one, hits.has(one)))));
        column.append(button);
      }
      columns.append(column);
    });
    node.append(header, columns);
    return node;
  }
  function renderAnswer(answer, hit) {
    const node = make("div", undefined, `answer ${scoreOf(answer)[1]}${hit ? "" : " other"}`);
    node.append(make("p", answer.t || "(empty)"));
    const said = make("ul");
    answer.s.forEach(([score, verdict, coherence, reason], index) => {
      const parts = [verdict, score === null ? "" : String(score)].filter((one) => one !== "");
      if (coherence !== undefined && coherence !== null) parts.push(`coherence ${coherence}`);
      if (reason) parts.push(reason);
      const name = answer.s.length > 1 || current().judges === 0 ? `${current().sources[index]}: ` : "";
      said.append(make("li", name + parts.join(", ")));
    });
    node.append(said);
    return node;
  }

  fill(set, data.sets.map((one, index) => [index, one.title]));
  fill(arm, [["", "all"], ...data.arms.map((label, index) => [index, label])]);
  set.addEventListener("change", setChanged);
  source.addEventListener("change", sourceChanged);
  for (const node of [arm, verdict, category, sort]) node.addEventListener("change", refresh);
  for (const node of [low, high, words]) node.addEventListener("input", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  setChanged();
})();
