// What parts of others leave out for keyboards and screen readers. A hook on the shadow roots sees
// each part when it is drawn: number fields, progress bars, dialogs, and tables, which become grids
// with one cell in the tab order. Arrows move that cell; space and enter are a click on it.
((words) => {
  const nameFields = (root) => {
    for (const field of root.querySelectorAll(".MuiInputBase-root")) {
      const buttons = field.querySelectorAll("button.MuiIconButton-root:not([aria-label])");
      if (buttons.length === 2 && field.querySelector("input")) {
        const label = field.parentElement.querySelector("label");
        buttons.forEach((button, i) => {
          const name = [words.less, words.more][i];
          button.setAttribute("aria-label", label ? `${name}: ${label.textContent}` : name);
          button.tabIndex = -1; // the arrows in the field do the same
        });
      }
    }
    for (const bar of root.querySelectorAll("[role='progressbar']:not([aria-label])")) {
      bar.setAttribute("aria-label", words.progress);
    }
    for (const title of root.querySelectorAll("h5:not([aria-hidden])")) {
      if (!title.textContent.trim()) {
        title.setAttribute("aria-hidden", "true");
      }
    }
  };

  const CELL = ".tabulator-cell, .wb-group"; // the header of a group is a row with one cell
  const field = (cell) => cell.getAttribute("tabulator-field");

  class Grid {
    constructor(root, table) {
      this.root = root;
      this.table = table;
      this.cell = null;
      this.place = [0, null];
      this.held = false; // the focus is here, or was when its cell was drawn anew
      table.addEventListener("keydown", (event) => this.press(event), true);
      table.addEventListener("focusin", (event) => {
        const cell = event.target.closest(CELL);
        if (cell) {
          this.held = true;
          this.choose(cell);
        }
      });
      table.addEventListener("focusout", (event) => {
        if (event.relatedTarget) {
          this.held = false;
        }
      });
      table.addEventListener("pointerdown", () => { this.held = false; }, true);
    }

    rows() {
      return [...this.table.querySelectorAll(".tabulator-row")];
    }

    cells(row) {
      return [...row.querySelectorAll(CELL)].filter((cell) => cell.offsetWidth > 0);
    }

    at(row, name) {
      const cells = row ? this.cells(row) : [];
      return cells.find((cell) => field(cell) === name) || cells[0];
    }

    choose(cell) {
      this.cell = cell;
      const row = cell.closest(".tabulator-row");
      this.place = [this.rows().indexOf(row), field(cell) || this.place[1]];
      for (const other of this.table.querySelectorAll("[role='gridcell'][tabindex='0']")) {
        if (other !== cell) {
          other.tabIndex = -1;
        }
      }
      cell.tabIndex = 0;
    }

    go(cell) {
      this.choose(cell);
      cell.focus();
    }

    // After the table was drawn: the same cell, or the one that stands there now.
    mend() {
      const holder = this.table.querySelector(".tabulator-tableholder");
      const rows = this.rows();
      holder.removeAttribute("tabindex"); // a grid holds rows, nothing that can be focused
      for (const header of this.table.querySelectorAll(".wb-group")) {
        const group = header.closest(".tabulator-group");
        header.setAttribute("aria-expanded", group.classList.contains("tabulator-group-visible"));
      }
      if (!rows.length) {
        return;
      }
      const there = this.cell && this.table.contains(this.cell);
      const [index, name] = this.place;
      const cell = there ? this.cell : this.at(rows[Math.min(index, rows.length - 1)], name);
      if (!cell) {
        return;
      }
      this.choose(cell);
      if (this.held && !this.root.activeElement) {
        cell.focus();
      }
    }

    press(event) {
      if (event.key === "Tab") {
        this.held = false;
      }
      const cell = event.target;
      if (!cell.matches(CELL) || event.ctrlKey || event.metaKey || event.altKey) {
        return; // in an editor the keys are the editor's
      }
      const rows = this.rows();
      const row = rows.indexOf(cell.closest(".tabulator-row"));
      const cells = this.cells(rows[row]);
      const column = cells.indexOf(cell);
      const down = { ArrowUp: -1, ArrowDown: 1, PageUp: -8, PageDown: 8 }[event.key];
      const right = { ArrowLeft: -1, ArrowRight: 1, Home: -column, End: cells.length }[event.key];
      if (down !== undefined) {
        const next = rows[Math.max(0, Math.min(rows.length - 1, row + down))];
        this.go(this.at(next, field(cell) || this.place[1]));
      } else if (right !== undefined) {
        this.go(cells[Math.max(0, Math.min(cells.length - 1, column + right))]);
      } else if (event.key === " " || event.key === "Enter") {
        cell.click();
      } else {
        return;
      }
      event.preventDefault();
      event.stopPropagation();
    }
  }

  const grids = new WeakMap();
  const mendTable = (root) => {
    const table = root.querySelector(".tabulator[role='grid']");
    if (table) {
      if (!grids.has(table)) {
        grids.set(table, new Grid(root, table));
      }
      grids.get(table).mend();
    }
  };

  // Who closes a dialog goes on where it was opened; inside shadow roots the dialog loses that.
  let outside = null;
  const remember = (event) => { // no move inside a root is heard above it: each root listens
    const node = event.composedPath()[0];
    if (!node.closest("[role='presentation'], [role='dialog']")) {
      outside = node;
    }
  };
  const openers = new WeakMap();
  const mendDialog = (root) => {
    const open = root.querySelector("[role='dialog']");
    if (open && !openers.has(root)) {
      openers.set(root, outside);
    } else if (!open && openers.has(root)) {
      const opener = openers.get(root);
      openers.delete(root);
      if (opener && opener.isConnected) {
        opener.focus();
      }
    }
  };

  const attach = Element.prototype.attachShadow;
  Element.prototype.attachShadow = function attachShadow(options) {
    const root = attach.call(this, options);
    root.addEventListener("focusin", remember);
    new MutationObserver(() => {
      if (this.className.includes("ReactComponent")) {
        nameFields(root);
        mendDialog(root);
      } else if (this.className.includes("DataTabulator")) {
        mendTable(root);
      }
    }).observe(root, { childList: true, subtree: true });
    return root;
  };
})
