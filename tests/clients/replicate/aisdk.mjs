// Cases for the Vercel AI SDK with its Replicate provider, unmodified; output as in javascript.mjs.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createReplicate } from "@ai-sdk/replicate";
import { generateImage } from "ai";

const server = process.env.SERVER;
const photo = await readFile(process.env.PHOTO);
const replicate = createReplicate({ apiToken: "r8_test", baseURL: `${server}/v1` });
const isWebp = (bytes) => Buffer.from(bytes.slice(8, 12)).toString() === "WEBP";

const cases = {
  async a_picture_is_made_from_text() {
    const { image } = await generateImage({
      model: replicate.image("black-forest-labs/flux-schnell"),
      prompt: "a fox",
      aspectRatio: "16:9",
      seed: 7,
    });
    assert(isWebp(image.uint8Array));
  },
  async several_pictures_are_several_calls() {
    const { images } = await generateImage({
      model: replicate.image("black-forest-labs/flux-dev"),
      prompt: "a fox",
      n: 2,
      size: "1024x1024",
    });
    assert.equal(images.length, 2);
  },
  async a_picture_is_edited() {
    const { image } = await generateImage({
      model: replicate.image("black-forest-labs/flux-kontext-dev"),
      prompt: "make it grayscale",
      providerOptions: {
        replicate: {
          input_image: `data:image/jpeg;base64,${photo.toString("base64")}`,
          maxWaitTimeInSeconds: 30,
        },
      },
    });
    assert(isWebp(image.uint8Array));
  },
  async a_picture_is_the_start_of_another() {
    const { image } = await generateImage({
      model: replicate.image("black-forest-labs/flux-dev"),
      prompt: { text: "a painting of it", images: [photo] },
      providerOptions: { replicate: { prompt_strength: 0.5 } },
    });
    assert(isWebp(image.uint8Array));
  },
  async bad_input_is_told_in_words() {
    await assert.rejects(
      generateImage({
        model: replicate.image("black-forest-labs/flux-kontext-pro"),
        prompt: "a fox",
        providerOptions: { replicate: { output_format: "webp" } },
        maxRetries: 0,
      }),
      /output_format must be one of the following/,
    );
  },
};

for (const [name, work] of Object.entries(cases)) {
  let error = null;
  try {
    await work();
  } catch (caught) {
    error = `${caught.stack ?? caught}`;
  }
  console.log(JSON.stringify({ name, error }));
}
