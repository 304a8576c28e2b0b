// Cases for the Vercel AI SDK 7 with its Black Forest Labs provider 2.0.41, unmodified.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createBlackForestLabs } from "@ai-sdk/black-forest-labs";
import { generateImage } from "ai7";

const { SERVER, KEY, HOOK, PHOTO } = process.env;
const photo = await readFile(PHOTO);
const provider = (mount, key = KEY) =>
  createBlackForestLabs({ apiKey: key, baseURL: `${SERVER}${mount}`, pollIntervalMillis: 50 });
const bfl = provider("/v1");
const isPng = (bytes) => Buffer.from(bytes.slice(1, 4)).toString() === "PNG";
const isJpeg = (bytes) => bytes[0] === 0xff && bytes[1] === 0xd8;
const failing = async (call) => {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("no error was raised");
};

const cases = {
  async a_picture_is_made_from_text() {
    const { image, providerMetadata } = await generateImage({
      model: bfl.image("flux-kontext-pro"),
      prompt: "a fox",
      aspectRatio: "16:9",
      seed: 7,
    });
    assert(isPng(image.uint8Array));
    const [facts] = providerMetadata.blackForestLabs.images;
    assert.equal(facts.seed, 7);
    assert(facts.duration > 0 && facts.end_time > facts.start_time);
    assert.equal(facts.outputMegapixels, 1.06);
  },
  async a_size_goes_out_as_ratio_and_sides() {
    const { image } = await generateImage({
      model: bfl.image("flux-dev"),
      prompt: "a fox",
      size: "512x384",
      providerOptions: { blackForestLabs: { steps: 20, guidance: 3, outputFormat: "png" } },
    });
    assert(isPng(image.uint8Array));
    assert.equal(Buffer.from(image.uint8Array).readUInt32BE(16), 512);
  },
  async several_pictures_are_several_calls() {
    const { images } = await generateImage({
      model: bfl.image("flux-pro-1.1"),
      prompt: "a fox",
      n: 2,
    });
    assert.equal(images.length, 2);
    assert(isJpeg(images[1].uint8Array));
  },
  async four_pictures_go_in() {
    const { image } = await generateImage({
      model: bfl.image("flux-kontext-max"),
      prompt: { text: "together", images: [photo, photo, photo, photo] },
    });
    assert(isPng(image.uint8Array));
  },
  async a_picture_is_filled() {
    const { image } = await generateImage({
      model: bfl.image("flux-pro-1.0-fill"),
      prompt: { text: "a hat", images: [photo], mask: photo },
    });
    assert(isJpeg(image.uint8Array));
  },
  async resellers_and_other_mounts_work_alike() {
    for (const mount of ["/flux/v1", "/bfl/v1"]) {
      const { image } = await generateImage({
        model: provider(mount).image("flux-kontext-pro"),
        prompt: "a fox",
      });
      assert(isPng(image.uint8Array));
    }
  },
  async a_wrong_key_is_told_in_words() {
    const error = await failing(() =>
      generateImage({ model: provider("/v1", "wrong").image("flux-dev"), prompt: "x" }),
    );
    assert.equal(error.statusCode, 403);
    assert.match(error.message, /Invalid Authentication/);
  },
  async a_bad_field_is_told_in_words() {
    const error = await failing(() =>
      generateImage({ model: bfl.image("flux-dev"), prompt: "x", size: "1792x1024" }),
    );
    assert.equal(error.statusCode, 422);
    assert.match(error.message, /1440/);
  },
  async a_webhook_is_asked_for_and_polling_goes_on() {
    const { image } = await generateImage({
      model: bfl.image("flux-kontext-pro"),
      prompt: "a fox",
      providerOptions: { blackForestLabs: { webhookUrl: HOOK, webhookSecret: "topsecret" } },
    });
    assert(isPng(image.uint8Array));
    const { body } = await (await fetch(HOOK)).json();
    assert.equal(JSON.parse(body).status, "Ready");
  },
};

for (const [name, run] of Object.entries(cases)) {
  let error = null;
  try {
    await run();
  } catch (caught) {
    error = `${caught.stack ?? caught} ${JSON.stringify(caught.responseBody ?? null)}`;
  }
  console.log(JSON.stringify({ case: name, error }));
}
