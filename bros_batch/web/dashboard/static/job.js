// The job page: its rows, with a filter, a search and the row at the top of the view in the URL.

import { byId, setText } from "./dom.js";
import { onFresh } from "./live.js";
import "./page.js";
import { AllRows, FoundRows } from "./row_source.js";
import { RowsTable } from "./rows_table.js";

const SEARCH_DELAY_MS = 250;
const REFRESH_MS = 2000;

const scroller = byId("rows");
const form = byId("row-filters");

// What the page knows about the job: the number of its last row, and what changes when rows change.
const state = () => byId("rows_state").firstElementChild.dataset;

function startRows() {
  const { job } = scroller.dataset;
  const address = (row) => `/jobs/${encodeURIComponent(job)}/rows/${row}`;
  const table = new RowsTable(scroller, JSON.parse(scroller.dataset.answers), address, rested);
  let shown = state().version;
  let lastRow = Number(state().last);
  let refreshedAt = 0;
  let timer = 0;

  const query = () => new URLSearchParams(location.search);

  function changeUrl(changes, isSmall) {
    const wanted = query();
    for (const [name, value] of Object.entries(changes)) {
      if (value) wanted.set(name, value);
      else wanted.delete(name);
    }
    const url = location.pathname + (wanted.size ? `?${wanted}` : "");
    if (url === location.pathname + location.search) return false;
    history[isSmall ? "replaceState" : "pushState"](null, "", url);
    return true;
  }

  function onChange(error) {
    table.draw();
    if (error) setText(byId("rows-note"), error.message);
    else setText(byId("rows-note"), note());
  }

  function note() {
    const { source } = table;
    if (source instanceof AllRows) return source.size ? "" : "No rows yet.";
    const count = source.size.toLocaleString("en").replaceAll(",", "\u202f");
    if (source.isCut) return `The first ${count} rows that match. Search for something more special.`;
    if (source.isComplete) return source.size ? `${count} ${source.size === 1 ? "row matches" : "rows match"}.` : "No row matches.";
    return `${count} found so far, up to row ${(source.next ?? 0).toLocaleString("en").replaceAll(",", "\u202f")} …`;
  }

  function load() {
    const wanted = query();
    const filter = Object.fromEntries(["status", "search"].map((name) => [name, wanted.get(name)]).filter(([, value]) => value));
    form.elements.search.value = filter.search ?? "";
    for (const link of document.querySelectorAll("a[data-rows]")) markCurrent(link);
    table.marked = null;
    table.show(Object.keys(filter).length ? new FoundRows(job, filter, onChange) : new AllRows(job, lastRow, onChange));
    const row = Number(wanted.get("row"));
    if (row > 1) table.goTo(row);
    onChange();
  }

  function markCurrent(link) {
    if ((new URL(link.href).searchParams.get("status") ?? "") === (query().get("status") ?? "")) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }

  function rested(number) {
    changeUrl({ row: number > 1 ? number : "" }, true);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-rows]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const { searchParams } = new URL(link.href);
    const search = searchParams.get("search") ?? (link.dataset.rows === "all" ? "" : query().get("search"));
    if (changeUrl({ status: searchParams.get("status"), search, row: "" })) load();
    if (link.dataset.rows === "all") byId("rows-panel").scrollIntoView({ block: "nearest" });
  });
  form.elements.search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => changeUrl({ search: form.elements.search.value.trim(), row: "" }) && load(), SEARCH_DELAY_MS);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    const number = Number(form.elements.row.value);
    if (document.activeElement === form.elements.row && number > 0) {
      changeUrl({ row: number });
      table.goTo(number);
    } else if (changeUrl({ search: form.elements.search.value.trim(), row: "" })) {
      load();
    }
  });
  window.addEventListener("popstate", load);

  onFresh(() => {
    for (const link of document.querySelectorAll("a[data-rows]")) markCurrent(link);
    table.draw(); // fetches again what could not be fetched
    const { version, last } = state();
    if (version === shown || Date.now() - refreshedAt < REFRESH_MS) return;
    refreshedAt = Date.now();
    shown = version;
    lastRow = Number(last);
    table.setLastRow(lastRow);
    if (table.source instanceof AllRows) table.source.refresh(lastRow);
    else if (table.source.isComplete && scroller.scrollTop < scroller.clientHeight) {
      // Look again, and show what is found only when it has been found.
      const fresh = new FoundRows(job, table.source.filter, () => {
        if (table.source !== fresh && (fresh.size || fresh.isComplete)) table.show(fresh);
        if (table.source === fresh) onChange();
      });
    }
  });

  table.setLastRow(lastRow);
  load();
}

startRows();
