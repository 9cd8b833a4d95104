// The frame around Netron, as an anywidget: the same file in Panel (AnyWidgetComponent) and Jupyter.
// Traits:  url       'netron/?url=...' as model_url makes it, '' for none
//          base      what url is relative to; 'jupyter' asks the notebook page for it
//          selected  node name, both ways;   colors {node name: CSS colour};   dark bool
//          follow    dark is what the page is (ground.js stands before this file then)
//          note      shown while url is '';  height CSS length;   status 'empty'|'loading'|'ready'|'off'
const OFF =
    'Graphs are shown by an extension of Jupyter Server, and it does not answer. ' +
    'Run “jupyter server extension enable workbench.netron_server --sys-prefix”, restart Jupyter, ' +
    'and run this cell again. Everything else works without it.';
const FOREIGN =
    'Graphs are shown in JupyterLab and Notebook, whose server delivers them. ' +
    'In this window, open the exported .onnx file with Netron itself.';

function baseOf(model) {
    const base = model.get('base');
    if (base !== 'jupyter') {
        return base;
    }
    const config = document.getElementById('jupyter-config-data');
    if (!config) {
        return null;
    }
    const parsed = JSON.parse(config.textContent);
    const root = parsed.baseUrl || '/';
    return (root.endsWith('/') ? root : `${root}/`) + 'compression-workbench/';
}

async function answers(base) {
    try {
        const reply = await fetch(`${base}netron/bridge.js`, { credentials: 'same-origin' });
        return reply.ok && (await reply.text()).includes('workbench-node');
    } catch {
        return false;
    }
}

function render({ model, el }) {
    const note = document.createElement('div');
    note.className = 'workbench-netron-note';
    note.style.cssText = 'padding: 1.5em; opacity: 0.75; text-align: center;';
    const frame = document.createElement('iframe');
    frame.className = 'workbench-netron';
    frame.title = 'Graph of the exported model';
    frame.style.cssText = 'border: 0; width: 100%; display: block;';
    el.append(note, frame);

    const status = (value) => {
        if (model.get('status') !== value) {
            model.set('status', value);
            model.save_changes();
        }
    };
    const send = (message) => {
        if (frame.contentWindow && frame.src) {
            frame.contentWindow.postMessage(message, window.location.origin);
        }
    };
    const say = (text) => {
        note.textContent = text;
        note.style.display = text ? 'block' : 'none';
        frame.style.display = text ? 'none' : 'block';
    };

    let told = null; // what the frame told us last: not sent back to it
    const theme = () => send({ type: 'workbench-theme', dark: model.get('dark') });
    const colors = () => send({ type: 'workbench-colors', colors: model.get('colors') });
    const select = () => {
        const name = model.get('selected');
        if (name && name !== told) {
            send({ type: 'workbench-select', name });
        }
        told = null;
    };
    let turn = 0;
    const load = async () => {
        turn += 1;
        const mine = turn;
        frame.style.height = model.get('height');
        const url = model.get('url');
        if (!url) {
            frame.removeAttribute('src');
            say(model.get('note'));
            status('empty');
            return;
        }
        const base = baseOf(model);
        const reachable = base !== null && (await answers(base));
        if (mine !== turn) {
            return;
        }
        if (!reachable) {
            say(base === null ? FOREIGN : OFF);
            status('off');
            return;
        }
        say('');
        status('loading');
        frame.src = base + url + (url.includes('theme=') ? '' : `&theme=${model.get('dark') ? 'dark' : 'light'}`);
    };
    const hear = (event) => {
        if (event.source !== frame.contentWindow || event.origin !== window.location.origin) {
            return;
        }
        const message = event.data || {};
        if (message.type === 'workbench-ready') {
            theme();
            colors();
            select();
            status('ready');
        } else if (message.type === 'workbench-node') {
            told = model.get('selected') === message.name ? null : message.name;
            model.set('selected', message.name);
            model.save_changes();
        }
    };

    const stop = model.get('follow')
        ? followGround(el, (dark) => {
            model.set('dark', dark);
            model.save_changes();
        })
        : () => {};
    window.addEventListener('message', hear);
    model.on('change:url', load);
    model.on('change:note', load);
    model.on('change:selected', select);
    model.on('change:colors', colors);
    model.on('change:dark', theme);
    load();
    return () => {
        stop();
        window.removeEventListener('message', hear);
        model.off('change:url', load);
        model.off('change:note', load);
        model.off('change:selected', select);
        model.off('change:colors', colors);
        model.off('change:dark', theme);
    };
}

export default { render };
