// Cases for the official JavaScript package `openai` 6.49.0, unmodified.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const { SERVER, KEY, PHOTO } = process.env;
const client = new OpenAI({ apiKey: KEY, baseURL: `${SERVER}/v1` });
const bytes = (text) => Buffer.from(text, "base64");

const cases = {
  async a_picture_is_made() {
    const done = await client.images.generate({
      model: "flux-dev",
      prompt: "a fox",
      size: "512x256",
      seed: 3,
    });
    assert.equal(bytes(done.data[0].b64_json).readUInt32BE(16), 512);
    assert.match(done._request_id, /^[0-9a-f-]{36}$/);
  },
  async files_are_edited() {
    const image = await toFile(fs.readFileSync(PHOTO), "photo.png", { type: "image/png" });
    const model = "flux-kontext-dev";
    const one = await client.images.edit({ model, image: fs.createReadStream(PHOTO), prompt: "x" });
    assert.equal(one.size, "320x256");
    const two = await client.images.edit({ model, image: [image, image], prompt: "x", n: 2 });
    assert.equal(two.data.length, 2);
  },
  async a_mask_says_where() {
    const mask = fs.createReadStream(PHOTO.replace("photo.png", "mask.png"));
    const image = fs.createReadStream(PHOTO);
    const done = await client.images.edit({ model: "simulator", image, mask, prompt: "a hat" });
    assert.equal(done.data.length, 1);
  },
  async partial_pictures_are_streamed() {
    const events = await client.images.generate({
      model: "flux-dev",
      prompt: "a fox [[steps=28]]",
      size: "512x256",
      stream: true,
      partial_images: 3,
    });
    const kinds = [];
    for await (const event of events) kinds.push(event.type);
    assert.equal(kinds.pop(), "image_generation.completed");
    assert.deepEqual(kinds, Array(3).fill("image_generation.partial_image"));
  },
  async an_error_in_a_stream_is_raised() {
    const prompt = "[[outcome=fail error='out of foxes']]";
    const events = await client.images.generate({ prompt, stream: true });
    await assert.rejects(async () => {
      for await (const event of events) assert.ok(event);
    }, /out of foxes/);
  },
  async errors_have_their_classes() {
    const stranger = new OpenAI({ apiKey: "no", baseURL: `${SERVER}/v1` });
    const prompt = "x";
    await assert.rejects(stranger.images.generate({ prompt }), OpenAI.AuthenticationError);
    const size = "big";
    await assert.rejects(client.images.generate({ prompt, size }), OpenAI.BadRequestError);
    const model = "nothing";
    await assert.rejects(client.images.generate({ prompt, model }), OpenAI.NotFoundError);
  },
  async models_are_listed() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes("flux-dev"));
    assert.equal((await client.models.retrieve("flux-dev")).object, "model");
  },
};

for (const [name, run] of Object.entries(cases)) {
  let error = null;
  try {
    await run();
  } catch (problem) {
    error = String(problem.stack ?? problem);
  }
  console.log(JSON.stringify({ case: name, error }));
}
