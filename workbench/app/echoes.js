// A React component of Panel writes what it has drawn back into its model, a moment later. If the
// server changes a value twice in that moment, the first value comes back, to stay: a button whose
// job was short could never be pressed again. No component here has a say in these properties.
(() => {
  const decidedByServer = new Set([
    "disabled", "label", "options", "items", "icon", "variant", "color", "error_state",
    "placeholder",
  ]);
  let owner = Bokeh.Models.get("panel.models.esm.ReactComponent").prototype;
  while (!Object.hasOwn(owner, "setv")) {
    owner = Object.getPrototypeOf(owner);
  }
  const { setv } = owner;

  owner.setv = function setUnlessEcho(values, options) {
    const names = Object.keys(values);
    const echo = options === undefined && names.length === 1 && decidedByServer.has(names[0]);
    return echo ? undefined : setv.call(this, values, options);
  };
})();
