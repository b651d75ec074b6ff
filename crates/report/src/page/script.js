"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Light, dark, or as the system has it.
  const themes = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  const stored = () => { try { return localStorage.getItem("halfbyte-theme"); } catch { return null; } };
  const show = (theme) => {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    try { localStorage.setItem("halfbyte-theme", theme); } catch { /* a page from a file may have no storage */ }
  };
  let theme = themes.includes(stored()) ? stored() : "system";
  show(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    show(theme);
  });

  // Tables sort by their heads and go out as CSV, with the raw values of the cells.
  const raw = (cell) => cell.dataset.v ?? cell.textContent;
  const compare = (numeric, down) => (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return down ? -order : order;
  };
  for (const table of document.querySelectorAll("table.data")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const sort = document.createElement("button");
      sort.type = "button";
      sort.append(...head.childNodes);
      head.append(sort);
      sort.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const order = compare(head.classList.contains("n"), down);
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => order(raw(a.cells[column]), raw(b.cells[column])));
        table.tBodies[0].append(...rows);
      });
    });
    const quote = (text) => /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const csv = () => {
      const lines = [heads.map((head) => head.dataset.key)];
      for (const row of table.tBodies[0].rows) lines.push([...row.cells].map(raw));
      return lines.map((line) => line.map(quote).join(",") + "\n").join("");
    };
    const save = document.getElementById(`${table.id}-csv`);
    save.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
      link.download = `${table.id}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    table.csv = csv;
  }

  // The heat map shows another column.
  for (const choice of document.querySelectorAll("input[data-column]")) {
    choice.addEventListener("change", () => {
      const figure = choice.closest("figure");
      const column = Number(choice.dataset.column);
      for (const cell of figure.querySelectorAll(".cell")) {
        const step = cell.dataset.steps.split(",")[column];
        cell.setAttribute("class", `mark cell ${step === "-" ? "none" : `h${step}`}`);
      }
      for (const ramp of figure.querySelectorAll(".ramp")) ramp.hidden = Number(ramp.dataset.column) !== column;
    });
  }

  // Titles become names for screen readers and text for the tip, which comes at once and has all figures.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  for (const title of document.querySelectorAll("svg title")) {
    const owner = title.parentNode;
    owner.setAttribute("aria-label", title.textContent);
    owner.removeAttribute("aria-labelledby");
    title.remove();
  }
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const open = (mark) => {
    tip.replaceChildren(element("b", mark.getAttribute("aria-label")));
    const row = mark.dataset.row && document.getElementById(mark.dataset.row);
    if (row) {
      const list = document.createElement("dl");
      const heads = row.closest("table").tHead.rows[0].cells;
      [...row.cells].forEach((cell, column) => {
        if (cell.textContent === "") return;
        const line = document.createElement("div");
        if (cell.textContent.length > 20) line.className = "wide";
        line.append(element("dt", heads[column].textContent), element("dd", cell.textContent));
        list.append(line);
      });
      tip.append(list);
    }
    tip.hidden = false;
    mark.setAttribute("aria-describedby", "tip");
    const at = mark.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = Math.min(Math.max(at.x + at.width / 2 - size.width / 2, 12), root.clientWidth - size.width - 12);
    const above = at.y - size.height - 10;
    const top = above > 4 ? above : at.bottom + 10;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  };
  const close = () => {
    tip.hidden = true;
    for (const mark of document.querySelectorAll(".mark[aria-describedby]")) mark.removeAttribute("aria-describedby");
  };

  // Another cell of a sweep: its figures go into the table, its colours and names into the map.
  for (const choice of document.querySelectorAll("select[data-source]")) {
    const cells = JSON.parse(document.getElementById(choice.dataset.source).textContent);
    const table = document.getElementById(choice.dataset.table);
    const figure = choice.closest("figure");
    choice.addEventListener("change", () => {
      close();
      const cell = cells[choice.selectedIndex];
      const rows = cell.titles.map((_, index) => document.getElementById(`l${index}`));
      cell.columns.forEach((contents, column) => contents !== null && rows.forEach((row, index) => {
        row.cells[column].innerHTML = Array.isArray(contents) ? contents[index] : contents;
      }));
      for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
      table.tBodies[0].append(...rows);
      document.getElementById(choice.dataset.text).textContent = cell.largest;
      for (const ramp of figure.querySelectorAll(".ramp")) {
        const { low, high } = cell.colours[ramp.dataset.column];
        [ramp.children[0].textContent, ramp.children[2].textContent] = [low, high];
      }
      const warned = [...table.tHead.rows[0].cells].findIndex((head) => head.dataset.key === "warnings");
      for (const flag of figure.querySelectorAll(".flag")) flag.remove();
      for (const mark of figure.querySelectorAll(".cell")) {
        const index = Number(mark.dataset.row.slice(1));
        mark.setAttribute("aria-label", cell.titles[index]);
        mark.dataset.steps = cell.colours.map(({ steps }) => steps[index] === "-" ? "-" : parseInt(steps[index], 12)).join();
        if (warned < 0 || rows[index].cells[warned].textContent === "") continue;
        const flag = document.createElementNS("http://www.w3.org/2000/svg", "circle");
        const end = Number(mark.getAttribute("x")) + Number(mark.getAttribute("width"));
        const place = { class: "flag", cx: end - 4.5, cy: Number(mark.getAttribute("y")) + 4.5, r: 3.2 };
        for (const [name, value] of Object.entries(place)) flag.setAttribute(name, value);
        mark.closest("svg").querySelector(".over").append(flag);
      }
      figure.querySelector("input[data-column]:checked").dispatchEvent(new Event("change"));
    });
  }

  // A mark may be small: the nearest one in reach of the pointer answers.
  const reach = 22;
  const nearest = (chart, x, y) => {
    let best = null;
    let least = reach;
    for (const mark of chart.querySelectorAll(".mark")) {
      const box = mark.getBoundingClientRect();
      const dx = Math.max(box.left - x, 0, x - box.right);
      const dy = Math.max(box.top - y, 0, y - box.bottom);
      const distance = Math.hypot(dx, dy);
      if (distance < least) { least = distance; best = mark; }
    }
    return best;
  };
  for (const chart of document.querySelectorAll("svg.chart")) {
    const marks = [...chart.querySelectorAll(".mark")];
    const under = (event) => event.target.closest(".mark") ?? nearest(chart, event.clientX, event.clientY);
    chart.addEventListener("pointermove", (event) => {
      const mark = event.pointerType === "mouse" && under(event);
      if (mark) { close(); open(mark); } else if (event.pointerType === "mouse") close();
    });
    chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") close(); });
    chart.addEventListener("click", (event) => { under(event)?.focus({ preventScroll: true }); });
    chart.addEventListener("focusin", (event) => {
      for (const mark of marks) mark.setAttribute("tabindex", "-1");
      event.target.setAttribute("tabindex", "0");
      close();
      open(event.target);
    });
    chart.addEventListener("focusout", close);
    chart.addEventListener("keydown", (event) => {
      const index = marks.indexOf(document.activeElement);
      if (index < 0) return;
      const center = (mark) => {
        const box = mark.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
      };
      // The next mark in the direction of the arrow, sideways steps counting double.
      const toward = (dx, dy) => {
        const [x, y] = center(marks[index]);
        let best = null;
        let least = Infinity;
        for (const mark of marks) {
          const [ox, oy] = center(mark);
          const along = (ox - x) * dx + (oy - y) * dy;
          const aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
          const cost = along + 2 * aside;
          if (along > 0.5 && cost < least) { least = cost; best = mark; }
        }
        return best;
      };
      const go = {
        ArrowRight: () => toward(1, 0), ArrowLeft: () => toward(-1, 0),
        ArrowDown: () => toward(0, 1), ArrowUp: () => toward(0, -1),
        Home: () => marks[0], End: () => marks[marks.length - 1],
      }[event.key];
      if (!go) return;
      event.preventDefault();
      go()?.focus();
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
})();
