// Of a table whose data were patched only the cells that differ are drawn anew. Panel builds all
// of them again, which takes half of a toggle's time and the focus from the cell that had it.
// What changes while a table is being built, which Panel leaves out, is shown when it is built.
(() => {
  const PAUSE_MS = 50;
  const { prototype } = Bokeh.Models.get("panel.models.tabulator.DataTabulator");
  const view = prototype.default_view.prototype;
  const { setData, tableBuilt, updateOrAddData: buildAnew } = view;

  const changes = ({ source }, rows) => {
    const columns = source.columns().map((name) => [name, source.get_array(name)]);
    return rows.map((row) => Object.fromEntries(columns
      .filter(([name, values]) => !Object.is(values[row.data._index], row.data[name]))
      .map(([name, values]) => [name, values[row.data._index]])));
  };

  view.setData = function setDataOrWait() {
    this.hasNewData = this._building || this._initializing;
    return setData.call(this);
  };

  view.tableBuilt = function showBuilt() {
    tableBuilt.call(this);
    if (this.hasNewData) {
      this.setData().then(() => this.postUpdate());
    }
    performance.mark("wb-table-drawn");
  };

  // Panel asks without a pause whether all style sheets have come, and believes that those have not
  // whose load event was over when it began to listen: a page that was open used a whole core.
  view._flush_resize_when_root_ready = async function resizeWhenReady() {
    while (this._resize_pending) {
      await this.root.ready;
      const styled = this._applied_stylesheets.every(
        ({ el }) => !(el instanceof HTMLLinkElement) || el.sheet !== null);
      const busy = this._is_scrolling || this._initializing || this.container === null ||
        this.is_drawing || this._has_active_editor();
      if (this._resize_pending && styled && !busy) {
        this._resize_pending = false;
        this._resize_redraw();
      } else {
        await new Promise((wake) => { setTimeout(wake, PAUSE_MS); });
      }
    }
  };

  view.updateOrAddData = function updateOrAddData() {
    if (this._building) {
      this.hasNewData = true;
      return;
    }
    const rows = this.tabulator.rowManager.rows;
    const { pagination, groupby, configuration, source } = this.model;
    const plain = pagination === null && !groupby.length && !(configuration || {}).dataTree;
    if (!plain || rows.length !== source.get_length()) {
      buildAnew.call(this);
    } else if (!this._tabulator_cell_updating) {
      changes(this.model, rows).forEach((change, index) => {
        if (Object.keys(change).length) {
          rows[index].updateData(change);
        }
      });
    }
  };
})();
