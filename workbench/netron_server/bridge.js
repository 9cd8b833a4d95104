// Runs inside Netron's page, before Netron. Speaks postMessage with the page that shows it:
//   in   {type: 'workbench-select', name}     select, show and scroll to the node of that name
//        {type: 'workbench-colors', colors}   node name -> CSS colour of its title
//        {type: 'workbench-theme', dark}      dark or light
//   out  {type: 'workbench-ready', nodes, linked}   a graph is drawn (again)
//        {type: 'workbench-node', name}             the user selected a node
// Netron has no interface for this, so every internal name is looked up with care; without them
// the page still shows the graph.
(() => {
    'use strict';
    const state = { colors: {}, pending: null, muted: false, hooked: null, nodes: -1, last: null, tries: 0 };

    const tell = (message) => {
        if (window.parent !== window) {
            window.parent.postMessage(message, window.location.origin);
        }
    };

    // A graph that has come must not take the keyboard from whoever writes in the page around it.
    const focus = HTMLElement.prototype.focus;
    let touched = false;
    for (const name of ['pointerdown', 'keydown']) {
        window.addEventListener(name, () => { touched = true; }, { capture: true, once: true });
    }
    HTMLElement.prototype.focus = function (...options) {
        if (touched || window.parent === window) {
            focus.apply(this, options);
        }
    };

    const target = () => (window.__view__ && window.__view__._target) || null;

    const entry = (name) => {
        const graph = target();
        if (graph && graph._table instanceof Map) {
            for (const [value, element] of graph._table) {
                if (value && value.name === name && element && element.id === `node-name-${name}`) {
                    return value;
                }
            }
        }
        return null;
    };

    const select = (name) => {
        state.pending = null;
        const element = document.getElementById(`node-name-${name}`);
        if (!element) {
            state.pending = name;
            return;
        }
        const value = entry(name);
        const graph = target();
        state.muted = true;
        state.last = name;
        try {
            if (value && typeof graph.activate === 'function' && typeof graph.scrollTo === 'function') {
                graph.scrollTo(graph.activate(value, 'workbench'), 'instant');
            } else {
                element.scrollIntoView({ block: 'center', inline: 'center' });
            }
        } finally {
            state.muted = false;
        }
    };

    const chosen = (name) => {
        if (!state.muted && name && name !== state.last) {
            state.last = name;
            tell({ type: 'workbench-node', name });
        }
    };

    const hook = () => {
        const graph = target();
        if (graph && state.hooked !== graph && typeof graph.on === 'function' && graph._selection) {
            state.hooked = graph;
            graph.on('selectionchange', () => {
                for (const element of graph._selection) {
                    if (typeof element.id === 'string' && element.id.startsWith('node-name-')) {
                        chosen(element.value.name);
                        return;
                    }
                }
                // An emptied selection is half of moving it: only a new name is news.
                if (!state.muted) {
                    state.last = null;
                }
            });
        }
    };

    // A click does not depend on Netron's internals; the same name is not told twice.
    document.addEventListener('click', (event) => {
        const node = event.target.closest && event.target.closest('[id^="node-name-"]');
        if (node) {
            chosen(node.id.slice('node-name-'.length));
        }
    });

    // Black or white, whichever is legible on a #rrggbb; anything else keeps Netron's own.
    const ink = (color) => {
        if (!/^#[0-9a-f]{6}$/i.test(color)) {
            return '';
        }
        const [red, green, blue] = [1, 3, 5].map((at) => {
            const part = parseInt(color.slice(at, at + 2), 16) / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? '#000' : '#fff';
    };

    const paint = () => {
        for (const node of document.querySelectorAll('[id^="node-name-"]')) {
            const color = state.colors[node.id.slice('node-name-'.length)] || '';
            for (const path of node.querySelectorAll('.node-item-type > path')) {
                if (path.style.fill !== color) {
                    path.style.fill = color;
                }
            }
            for (const text of node.querySelectorAll('.node-item-type > text')) {
                text.style.fill = ink(color);
            }
        }
    };

    // Netron follows the operating system only; its dark rules are switched here by hand.
    const rules = [];
    const theme = (dark) => {
        if (typeof dark !== 'boolean') {
            return;
        }
        for (const sheet of document.styleSheets) {
            for (const rule of sheet.cssRules) {
                if (rule.media && /prefers-color-scheme:\s*dark/.test(rule.media.mediaText)) {
                    rules.push(rule);
                }
            }
        }
        for (const rule of rules) {
            rule.media.mediaText = dark ? 'all' : 'not all';
        }
        document.documentElement.style.colorScheme = dark ? 'dark' : 'light';
    };

    const drawn = () => {
        hook();
        const nodes = document.querySelectorAll('[id^="node-name-"]').length;
        // Netron draws a graph before it calls it its target.
        if (nodes > 0 && (target() === null || target() !== state.hooked) && state.tries < 40) {
            state.tries += 1;
            window.setTimeout(drawn, 50);
            return;
        }
        if (nodes > 0) {
            state.tries = 0;
            paint();
            if (state.pending !== null) {
                select(state.pending);
            }
        }
        if (nodes > 0 && nodes !== state.nodes) {
            state.nodes = nodes;
            tell({ type: 'workbench-ready', nodes, linked: state.hooked !== null });
        }
    };

    window.addEventListener('message', (event) => {
        if (event.source !== window.parent || event.origin !== window.location.origin) {
            return;
        }
        const message = event.data || {};
        if (message.type === 'workbench-select' && typeof message.name === 'string') {
            select(message.name);
        } else if (message.type === 'workbench-colors' && message.colors) {
            state.colors = message.colors;
            paint();
        } else if (message.type === 'workbench-theme') {
            theme(message.dark);
        }
    });

    window.addEventListener('load', () => {
        const wanted = new URLSearchParams(window.location.search).get('theme');
        if (wanted) {
            theme(wanted === 'dark');
        }
        let timer = null;
        const later = () => {
            if (timer === null) {
                timer = window.setTimeout(() => {
                    timer = null;
                    drawn();
                }, 60);
            }
        };
        new MutationObserver(later).observe(document.body, { childList: true, subtree: true });
        later();
    });
})();
