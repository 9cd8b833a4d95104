// Notices that the server is gone: the socket closes, or questions stay without an answer. Then the
// page says so, asks until the server is back, and loads again with the ticket of this window.
const ASK_MS = 5000;
const MOST_UNANSWERED = 3;
const PROBE_MS = 1000;
const SOON_MS = 10000; // a page that loses its server this soon again waits for its reader
const LOADED = "workbench-reconnected";
const TICKET = "workbench-window";
const TRIED = "workbench-window-tried";

// The ticket that this tab had before it was loaded again, if the server was not told of it: a
// browser may ask for the page before the cookie has reached the part of it that sends cookies.
function forgotten(ticket) {
  const left = sessionStorage.getItem(TICKET);
  const [visit] = performance.getEntriesByType("navigation");
  const again = visit && visit.type === "reload";
  if (again && left && left !== ticket && sessionStorage.getItem(TRIED) !== left) {
    sessionStorage.setItem(TRIED, left);
    return left;
  }
  sessionStorage.setItem(TICKET, ticket);
  sessionStorage.removeItem(TRIED);
  return "";
}

export function render({ model, el, view }) {
  const { words } = model;
  const remember = (seconds, ticket = model.ticket) => {
    document.cookie = `${model.cookie}=${ticket}; path=/; max-age=${seconds}; samesite=lax`;
    return document.cookie; // reading waits until it is written
  };
  const left = forgotten(model.ticket);
  if (left) {
    remember(60, left);
    window.location.reload();
    return;
  }
  remember(0); // it was for this page; another window of the project is another window
  window.addEventListener("beforeunload", () => remember(60));

  const banner = document.createElement("div");
  banner.className = "wb-lost";
  banner.setAttribute("role", "alert");
  banner.hidden = true;
  const text = document.createElement("div");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = words.button;
  banner.append(text, button);
  el.appendChild(banner);

  let timer = 0;
  const say = (more) => {
    const title = document.createElement("b");
    title.textContent = words.lost;
    text.replaceChildren(title, ` ${more}`);
    banner.hidden = false;
  };
  const load = () => {
    sessionStorage.setItem(LOADED, String(Date.now()));
    window.location.reload();
  };
  const answers = async () => {
    const place = window.location.pathname.replace(/\/+$/, "");
    try {
      const signal = AbortSignal.timeout(5000);
      return (await fetch(`${place}/metadata`, { cache: "no-store", signal })).ok;
    } catch {
      return false;
    }
  };
  const probe = async () => {
    if (await answers()) {
      load();
    } else if (!banner.hidden) {
      timer = window.setTimeout(probe, PROBE_MS);
    }
  };
  const lost = () => {
    if (!banner.hidden) {
      return;
    }
    if (Date.now() - Number(sessionStorage.getItem(LOADED)) < SOON_MS) {
      say(words.again);
    } else {
      say(words.safe);
      timer = window.setTimeout(probe, PROBE_MS);
    }
  };
  const found = () => {
    window.clearTimeout(timer);
    banner.hidden = true;
  };
  button.addEventListener("click", async () => {
    window.clearTimeout(timer);
    button.disabled = true;
    if (await answers()) {
      load();
      return;
    }
    button.disabled = false;
    say(`${words.still} ${words.safe}`);
    timer = window.setTimeout(probe, PROBE_MS);
  });

  let unanswered = 0;
  const asking = window.setInterval(() => {
    if (unanswered >= MOST_UNANSWERED) {
      lost();
    }
    unanswered += 1;
    model.send_msg("still there?");
  }, ASK_MS);
  view.model.document.on_event("connection_lost", () => {
    window.clearInterval(asking);
    lost();
  });
  model.on("msg:custom", () => {
    unanswered = 0;
    found();
  });
  window.addEventListener("offline", async () => {
    if (!(await answers())) {
      lost();
    }
  });
}
