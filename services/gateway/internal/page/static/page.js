// The live page: follows the event stream, lets htmx refresh the parts that the server renders, opens dialogs.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const show = (id, on) => { byId(id).hidden = !on; };
  const tell = (name) => document.body.dispatchEvent(new CustomEvent(name));

  // --- session
  let over = false;
  let source = null, lastId = "", again = 0; // of the events; expire may come before them
  function expire() {
    over = true;
    show("expired", true);
    show("lost", false);
    if (source) source.close();
  }
  if (document.body.dataset.expiresIn) { // a span: this machine's clock may not be the gateway's
    const expires = Date.now() + Number(document.body.dataset.expiresIn);
    const check = () => (Date.now() >= expires ? expire() : setTimeout(check, Math.min(expires - Date.now() + 100, 3600e3)));
    check();
  }

  // --- events
  function connect() {
    if (over) return;
    const from = lastId ? "&last_event_id=" + encodeURIComponent(lastId) : "";
    source = new EventSource("/api/v1/stream?types=attack,verdict,enforcement,live,gap" + from);
    source.onopen = () => show("lost", false);
    source.onerror = () => {
      if (over) return;
      show("lost", true);
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      clearTimeout(again);
      again = setTimeout(connect, 2000);
      tell("tg-live"); // an answer of 401 tells that the session is over
    };
    source.addEventListener("live", (e) => live(JSON.parse(e.data)));
    source.addEventListener("attack", (e) => { keep(e); attack(JSON.parse(e.data)); tell("tg-live"); });
    source.addEventListener("enforcement", (e) => {
      keep(e);
      if (JSON.parse(e.data).state !== "hits") tell("tg-rules");
    });
    source.addEventListener("verdict", (e) => { keep(e); tell("tg-rules"); });
    source.addEventListener("gap", (e) => { keep(e); tell("tg-live"); tell("tg-rules"); });
    source.addEventListener("expired", expire);
  }
  const keep = (e) => { lastId = e.lastEventId; };

  let charts = null;
  function live(state) {
    show("lost", false);
    const time = Number(BigInt(state.time_ns) / 1000000n) / 1000;
    charts.pps.add(time, state.pps);
    charts.bps.add(time, state.bps);
    charts.legend.show(state.pps, state.bps);
    tell("tg-live");
  }

  // Only beginnings and ends are read out.
  const announced = new Map();
  function attack(a) {
    if (announced.get(a.id) === a.state || a.state === "updated") return;
    announced.set(a.id, a.state);
    if (announced.size > 500) announced.delete(announced.keys().next().value);
    const what = a.type.replaceAll("_", " ") + " toward " + a.target;
    byId("announce").textContent = a.state === "ended" ? "Attack ended: " + what : "Attack: " + what;
  }

  // --- htmx
  let pressed = false; // an element must not be replaced between press and release
  addEventListener("pointerdown", () => { pressed = true; }, true);
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => setTimeout(() => { pressed = false; }, 50), true);
  const polls = (e) => e.detail.elt.hasAttribute("data-poll");
  document.body.addEventListener("htmx:beforeRequest", (e) => {
    if (polls(e) && (document.hidden || over)) e.preventDefault();
  });
  document.body.addEventListener("htmx:beforeSwap", (e) => {
    if (e.detail.xhr.status === 401) expire();
    // What asks for a confirmation must still be there when it is given: htmx sends nothing for an element that was replaced.
    if (polls(e) && (pressed || byId("confirm")?.open || e.detail.xhr.status >= 400)) e.detail.shouldSwap = false;
  });
  document.body.addEventListener("htmx:sendError", () => { if (!over) show("lost", true); });
  document.body.addEventListener("htmx:confirm", (e) => {
    if (!e.detail.question) return;
    e.preventDefault();
    const d = byId("confirm");
    byId("confirm-text").textContent = e.detail.question;
    d.returnValue = "no";
    d.addEventListener("close", () => { if (d.returnValue === "yes") e.detail.issueRequest(true); }, { once: true });
    d.showModal();
  });

  // --- dialogs
  document.addEventListener("click", (e) => {
    const opener = e.target.closest("[data-open]");
    if (opener) {
      const d = byId(opener.dataset.open);
      for (const out of d.querySelectorAll("[aria-live]")) out.replaceChildren();
      d.showModal();
    }
    const closer = e.target.closest("[data-close]");
    if (closer) closer.closest("dialog").close();
  });
  const action = byId("r-action");
  if (action) {
    const rate = () => document.querySelectorAll("[data-rate]").forEach((el) => { el.hidden = action.value !== "rate-limit"; });
    action.addEventListener("change", rate);
    rate();
  }

  // What the server rendered is painted first.
  const start = () => { charts = TidegateChart.start(); connect(); };
  if (document.hidden) start();
  else requestAnimationFrame(() => setTimeout(start));
})();
