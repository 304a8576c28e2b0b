// Cases for the official JavaScript package `@fal-ai/client` 1.10.1, unmodified, by its proxy option.
import assert from "node:assert/strict";
import fs from "node:fs";
import { createFalClient } from "@fal-ai/client";

const { SERVER, KEY, PHOTO } = process.env;
const proxyUrl = { url: `${SERVER}/fal/proxy`, when: "always" };
const client = createFalClient({ credentials: KEY, proxyUrl });
const DEV = "fal-ai/flux/dev";
const small = { prompt: "a fox", image_size: "square" };
const bytes = async (url) => Buffer.from(await (await fetch(url)).arrayBuffer());

const cases = {
  async subscribe_tells_of_its_progress() {
    const seen = [];
    const { data, requestId } = await client.subscribe(DEV, {
      input: { ...small, prompt: "a fox [[seconds=1]]" },
      logs: true,
      onQueueUpdate: (update) => seen.push(update.status),
    });
    assert.match(requestId, /^[0-9a-f-]{36}$/);
    assert.equal((await bytes(data.images[0].url)).readUInt16BE(0), 0xffd8);
    assert.equal(seen.at(-1), "COMPLETED");
  },
  async subscribe_streams_its_status() {
    const { data } = await client.subscribe(DEV, { input: small, mode: "streaming" });
    assert.equal(data.prompt, "a fox");
  },
  async the_queue_is_used_by_hand() {
    const { request_id: requestId } = await client.queue.submit(DEV, { input: small });
    let status;
    do {
      status = await client.queue.status(DEV, { requestId, logs: true });
    } while (status.status !== "COMPLETED");
    assert.ok(status.logs.length > 0);
    const { data } = await client.queue.result(DEV, { requestId });
    assert.equal(data.images[0].width, 512);
  },
  async a_request_is_cancelled() {
    const input = { prompt: "[[seconds=60]]" };
    const { request_id: requestId } = await client.queue.submit(DEV, { input });
    await client.queue.cancel(DEV, { requestId });
    assert.equal((await client.queue.status(DEV, { requestId })).status, "COMPLETED");
    await assert.rejects(client.queue.result(DEV, { requestId }), { status: 422 });
  },
  async run_takes_a_file_that_it_uploads() {
    const image_url = new File([fs.readFileSync(PHOTO)], "photo.jpg", { type: "image/jpeg" });
    const input = { prompt: "at night", image_url };
    const { data } = await client.run("fal-ai/flux-kontext/dev", { input });
    assert.equal(data.images.length, 1);
    assert.equal(data.images[0].width, 1248);
  },
  async stream_ends_with_the_whole_output() {
    const input = { ...small, prompt: "a fox [[steps=28]]" };
    const stream = await client.stream(DEV, { input });
    let count = 0;
    for await (const event of stream) count += event.images.length;
    assert.ok(count > 1);
    assert.equal((await stream.done()).images[0].width, 512);
  },
  async errors_say_what_is_wrong() {
    await assert.rejects(client.run(DEV, { input: { prompt: "" } }), (error) => {
      assert.equal(error.status, 422);
      assert.deepEqual(error.body.detail[0].loc, ["body", "prompt"]);
      return true;
    });
    const stranger = createFalClient({ credentials: "no", proxyUrl });
    await assert.rejects(stranger.run(DEV, { input: small }), { status: 401 });
  },
};

for (const [name, run] of Object.entries(cases)) {
  let error = null;
  try {
    await run();
  } catch (problem) {
    error = `${problem.stack ?? problem} ${JSON.stringify(problem.body ?? null)}`;
  }
  console.log(JSON.stringify({ case: name, error }));
}
