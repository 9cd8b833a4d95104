// Bokeh takes models that the server has added for the browser's own: the next message that names
// one would carry all of it back, and the server warns that it knows it already.
(() => {
  const { Deserializer } = Bokeh.require("core/serialization/deserializer");
  const { Document } = Bokeh.require("document");
  const { _decode_object_ref: decode } = Deserializer.prototype;
  const { create_json_patch: create } = Document.prototype;
  const fromServer = new WeakSet();

  Deserializer.prototype._decode_object_ref = function decodeKnown(representation) {
    const model = decode.call(this, representation);
    fromServer.add(model);
    return model;
  };

  Document.prototype.create_json_patch = function createWithoutKnown(events) {
    this._new_models = new Set([...this._new_models].filter((model) => !fromServer.has(model)));
    return create.call(this, events);
  };
})();
