// Runs in a page that holds copies of a report in frames, one of them as wide as a phone. Each copy keeps its errors in
// `errors`, by a line put before all others. What is found goes into <pre id="found">.
"use strict";
addEventListener("load", () => {
  const found = [];
  const check = (name, ok, seen) => found.push(ok ? `ok ${name}` : `FAILED ${name}: ${seen}`);
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const view = frame.contentWindow;
    const at = (name) => `${name} at ${frame.width} px`;
    const all = (selector) => [...page.querySelectorAll(selector)];
    const shown = (element) => view.getComputedStyle(element).display !== "none";

    for (const chart of all("svg.chart")) {
      check(at(`marks of ${chart.id}`), chart.querySelectorAll(".mark").length > 0, "none");
      check(at(`name of ${chart.id}`), (chart.getAttribute("aria-label") ?? "").length > 5, chart.outerHTML.slice(0, 99));
    }
    const visible = all("svg.chart").filter(shown);
    const wide = visible.reduce((most, chart) => Math.max(most, chart.getBoundingClientRect().right), 0);
    check(at("charts inside the page"), wide <= frame.width, wide);
    check(at("no scrolling sideways"), page.documentElement.scrollWidth <= frame.width, page.documentElement.scrollWidth);
    const small = visible.flatMap((chart) => [...chart.querySelectorAll("text")].filter((text) => {
      const scale = chart.getBoundingClientRect().width / chart.viewBox.baseVal.width;
      return parseFloat(view.getComputedStyle(text).fontSize) * scale < 10;
    }));
    check(at("letters of charts are not tiny"), small.length === 0, small.map((text) => text.textContent).join());

    for (const table of all("table.data")) {
      const raw = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.v ?? row.cells[column].textContent);
      [...table.tHead.rows[0].cells].forEach((head, column) => {
        const before = raw(column).sort().join();
        const numbers = head.classList.contains("n");
        for (const way of ["ascending", "descending"]) {
          head.querySelector("button").click();
          const values = raw(column);
          const known = values.filter((value) => value !== "");
          const sign = way === "ascending" ? 1 : -1;
          const order = (a, b) => sign * (numbers ? a - b : a.localeCompare(b, "en", { numeric: true }));
          const sorted = known.every((value, index) => index === 0 || order(known[index - 1], value) <= 0);
          const last = values.slice(0, known.length).every((value) => value !== "");
          check(at(`${table.id} ${way} by ${head.dataset.key}`), sorted && last && head.getAttribute("aria-sort") === way, values);
          check(at(`${table.id} keeps its rows`), [...values].sort().join() === before, values);
        }
      });
      const lines = table.csv().replace(/"([^"]|"")*"/g, "quoted").trimEnd().split("\n");
      check(at(`${table.id} as CSV`), lines.length === table.tBodies[0].rows.length + 1, lines.length);
    }

    // Under the pointer a mark tells its name, and where a table has its figures, those.
    const tip = page.getElementById("tip");
    const hover = (mark) => {
      const box = mark.getBoundingClientRect();
      const [clientX, clientY] = [box.x + box.width / 2, box.y + box.height / 2];
      mark.dispatchEvent(new view.PointerEvent("pointermove", { pointerType: "mouse", bubbles: true, clientX, clientY }));
      return tip.textContent;
    };
    for (const chart of visible) {
      const mark = [...chart.querySelectorAll(".mark")].at(-1);
      const told = hover(mark);
      check(at(`a tip of ${chart.id}`), !tip.hidden && told.includes(mark.getAttribute("aria-label")), told);
      const figures = tip.querySelectorAll("dt").length;
      check(at(`figures in the tip of ${chart.id}`), !mark.dataset.row || figures > 2, told);
      chart.dispatchEvent(new view.PointerEvent("pointerleave", { pointerType: "mouse" }));
      check(at(`no tip beside ${chart.id}`), tip.hidden, tip.textContent);
    }

    // A run has its heat map, a sweep its cells.
    const heat = visible.find((chart) => chart.id.startsWith("heat"));
    const chart = heat ?? visible.find((chart) => chart.id === "pareto");
    const cell = chart.querySelector(".mark");
    check(at("one mark a chart in the tab order"), chart.querySelectorAll("[tabindex='0']").length === 1, "");
    cell.focus();
    check(at("the tip has every column"), tip.querySelectorAll("dt").length >= (heat ? 20 : 15), tip.textContent);
    const away = heat ? "ArrowRight" : "End";
    cell.dispatchEvent(new view.KeyboardEvent("keydown", { key: away, bubbles: true }));
    check(at("arrows lead on"), page.activeElement !== cell && page.activeElement.matches(".mark"), page.activeElement.outerHTML);
    cell.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    check(at("Escape closes the tip"), tip.hidden, "");

    if (heat) {
      const choices = all("input[data-column]");
      const colours = () => all("#heat .cell").map((mark) => mark.getAttribute("class")).join();
      const first = colours();
      choices[3].click();
      check(at("the heat map shows another column"), colours() !== first, "");
      choices[0].click();
      check(at("the heat map goes back"), colours() === first, "");

      const choice = page.querySelector("select[data-source]");
      const state = () => [
        colours(), all("#heat .cell, #heat-narrow .cell").map((mark) => mark.getAttribute("aria-label")).join(),
        page.getElementById("linears").tBodies[0].textContent, all(".ramp").map((ramp) => ramp.textContent).join(),
        choice && page.getElementById("largest").textContent, hover(heat.querySelector(".mark")),
      ];
      if (choice) {
        const show = (index) => {
          choice.selectedIndex = index;
          choice.dispatchEvent(new view.Event("change", { bubbles: true }));
        };
        const index = choice.selectedIndex;
        // In the table's own order, and with contents as the script writes them.
        show(index);
        const before = state();
        show(index === 0 ? 1 : 0);
        const after = state();
        before.forEach((part, i) => check(at(`another cell has other figures, ${i}`), part !== after[i], part));
        check(at("another cell keeps its marks"), all("#heat .cell").length === first.split(",").length, "");
        choices[1].click();
        const other = colours();
        show(index);
        check(at("a cell is shown by the column chosen"), colours() !== other, "");
        choices[0].click();
        state().forEach((part, i) => check(at(`the first cell comes back, ${i}`), part === before[i], part));
      }
      heat.dispatchEvent(new view.PointerEvent("pointerleave", { pointerType: "mouse" }));
    }

    const button = page.getElementById("theme");
    const papers = ["system", "light", "dark"].map((theme) => {
      while (button.textContent !== `Theme: ${theme}`) button.click();
      return view.getComputedStyle(page.body).backgroundColor;
    });
    check(at("light and dark differ"), papers[1] !== papers[2] && papers.slice(1).includes(papers[0]), papers);
    check(at("no errors"), view.errors.length === 0, view.errors);
  }
  document.getElementById("found").textContent = found.join("\n") + "\nend";
});
