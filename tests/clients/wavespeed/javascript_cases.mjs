// Cases for the official JavaScript package `wavespeed` 0.3.2, unmodified.
import assert from "node:assert/strict";
import { Client } from "wavespeed";

const { SERVER, KEY, PHOTO } = process.env;
const DEV = "wavespeed-ai/flux-dev";
const KONTEXT = "wavespeed-ai/flux-kontext-dev";
const client = new Client(KEY, { baseUrl: SERVER });
const quick = { pollInterval: 0.1 };
const bytes = async (url) => Buffer.from(await (await fetch(url)).arrayBuffer());
const failing = async (call) => {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("no error was raised");
};

const cases = {
  async a_picture_is_made_by_polling() {
    const { outputs } = await client.run(DEV, { prompt: "a fox", size: "512*256" }, quick);
    assert.equal((await bytes(outputs[0])).readUInt16BE(0), 0xffd8);
  },
  async several_pictures_are_made_in_sync_mode() {
    const input = { prompt: "a fox", num_images: 2, size: "256*256", output_format: "png" };
    const { outputs } = await client.run(DEV, input, { enableSyncMode: true });
    assert.equal(outputs.length, 2);
    assert.equal((await bytes(outputs[1])).readUInt32BE(16), 256);
  },
  async a_file_is_uploaded_by_ticket_and_edited() {
    const url = await client.upload(PHOTO);
    const { outputs } = await client.run(KONTEXT, { prompt: "at night", image: url }, quick);
    assert.equal(outputs.length, 1);
  },
  async a_wait_that_is_too_short_names_the_task() {
    const input = { prompt: "[[seconds=8]]" };
    const { detail } = await client.runNoThrow(DEV, input, { enableSyncMode: true });
    assert.equal(detail.status, "processing");
    assert.match(detail.error.message, /Sync mode timed out/);
    assert.match(detail.taskId, /^[0-9a-f]{32}$/);
  },
  async a_failed_task_is_not_submitted_again() {
    const input = { prompt: "[[outcome=fail error='HTTP 500 connection timeout 429']]" };
    const count = async () => {
      const headers = { Authorization: `Bearer ${KEY}` };
      const answer = await fetch(`${SERVER}/api/v3/predictions`, {
        method: "POST",
        headers,
        body: "{}",
      });
      return (await answer.json()).data.total;
    };
    const before = await count();
    const { detail } = await client.runNoThrow(DEV, input, { ...quick, maxRetries: 2 });
    assert.equal(detail.status, "failed");
    assert.equal(await count(), before + 1);
  },
  async a_wrong_key_is_told_in_words() {
    const stranger = new Client("wrong", { baseUrl: SERVER });
    const error = await failing(() => stranger.run(DEV, { prompt: "a fox" }, quick));
    assert.match(error.message, /this API key is not valid here/);
  },
  async a_bad_field_is_told_in_words() {
    const error = await failing(() => client.run(DEV, { prompt: "x", num_images: 5 }, quick));
    assert.match(error.message, /num_images must be less than or equal to 4/);
  },
};

for (const [name, run] of Object.entries(cases)) {
  let error = null;
  try {
    await run();
  } catch (caught) {
    error = `${caught.stack ?? caught}`;
  }
  console.log(JSON.stringify({ case: name, error }));
}
