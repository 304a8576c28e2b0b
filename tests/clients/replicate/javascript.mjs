// Cases for the JavaScript client 1.4.0, unmodified. Prints one JSON line a case:
// {"name": ..., "error": null | text}. SERVER is the origin, PHOTO a JPEG of 300 x 200,
// HOOK where a webhook receiver can be reached and asked for what it got.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import Replicate, { validateWebhook, parseProgressFromLogs } from "replicate";

const server = process.env.SERVER;
const KONTEXT = "black-forest-labs/flux-kontext-dev";
const SCHNELL = "black-forest-labs/flux-schnell";
const PRO = "black-forest-labs/flux-pro";
const photo = await readFile(process.env.PHOTO);

const client = () => new Replicate({ auth: "r8_test", baseUrl: `${server}/v1` });
const isJpeg = (bytes) => bytes[0] === 0xff && bytes[1] === 0xd8;
const isWebp = (bytes) => Buffer.from(bytes.slice(8, 12)).toString() === "WEBP";
const bytesOf = async (output) => new Uint8Array(await (await output.blob()).arrayBuffer());

const cases = {
  async run_takes_a_buffer() {
    const output = await client().run(KONTEXT, {
      input: { prompt: "make it grayscale", input_image: photo, output_format: "jpg" },
    });
    assert(isJpeg(await bytesOf(output)));
  },
  async run_takes_a_blob_and_a_data_uri() {
    const uri = `data:image/jpeg;base64,${photo.toString("base64")}`;
    for (const picture of [new Blob([photo]), uri]) {
      const output = await client().run(KONTEXT, { input: { prompt: "snow", input_image: picture } });
      assert(isWebp(await bytesOf(output)));
    }
  },
  async run_works_under_the_resellers_mount() {
    const replicate = new Replicate({ auth: "r8_test", baseUrl: `${server}/replicate/v1` });
    const output = await replicate.run(KONTEXT, { input: { prompt: "snow", input_image: photo } });
    assert(isWebp(await bytesOf(output)));
  },
  async run_uploads_when_told() {
    const replicate = new Replicate({
      auth: "r8_test",
      baseUrl: `${server}/v1`,
      fileEncodingStrategy: "upload",
    });
    const output = await replicate.run(KONTEXT, { input: { prompt: "snow", input_image: photo } });
    assert(isWebp(await bytesOf(output)));
  },
  async a_list_model_gives_a_list() {
    const output = await client().run(SCHNELL, { input: { prompt: "a fox", num_outputs: 2 } });
    assert.equal(output.length, 2);
    for (const item of output) assert(isWebp(await bytesOf(item)));
  },
  async progress_reaches_the_callback() {
    const seen = [];
    await client().run(
      PRO,
      { input: { prompt: "slow [[seconds=3 steps=10]]" }, wait: { mode: "block", timeout: 1 } },
      (prediction) => seen.push([prediction.status, parseProgressFromLogs(prediction)]),
    );
    assert.equal(seen[0][0], "starting");
    assert.equal(seen.at(-1)[0], "succeeded");
    const shares = seen.filter(([, p]) => p).map(([, p]) => p.percentage);
    assert(shares.length > 2 && shares.at(-1) === 1);
  },
  async run_polls_without_blocking() {
    const output = await client().run(PRO, {
      input: { prompt: "a fox" },
      wait: { mode: "poll", interval: 50 },
    });
    assert(isWebp(await bytesOf(output)));
  },
  async an_abort_cancels() {
    const replicate = client();
    const control = new AbortController();
    const running = replicate.run(
      PRO,
      { input: { prompt: "aborted [[seconds=60]]" }, wait: { mode: "poll" }, signal: control.signal },
      () => control.abort(),
    );
    await running;
    const page = await replicate.predictions.list();
    const aborted = page.results.find((item) => item.input.prompt.startsWith("aborted"));
    assert.equal(aborted.status, "canceled");
  },
  async cancel_in_mid_flight_is_answered_at_once() {
    const replicate = client();
    const made = await replicate.predictions.create({
      model: PRO,
      input: { prompt: "slow [[seconds=60]]" },
    });
    assert.equal(made.status, "starting");
    const canceled = await replicate.predictions.cancel(made.id);
    assert.equal(canceled.status, "canceled");
    assert.equal((await replicate.predictions.get(made.id)).status, "canceled");
  },
  async a_failure_rejects_with_its_text() {
    const input = { prompt: "[[outcome=fail error='out of foxes']]" };
    await assert.rejects(client().run(PRO, { input }), /out of foxes/);
  },
  async stream_yields_files_then_done() {
    const names = [];
    for await (const event of client().stream(SCHNELL, { input: { prompt: "a fox", num_outputs: 2 } })) {
      names.push(event.event);
      if (event.event === "output") assert(isWebp(await bytesOf(event.data)));
    }
    assert.deepEqual(names, ["output", "output", "done"]);
  },
  async stream_of_a_failure_rejects() {
    const input = { prompt: "[[outcome=fail error='out of foxes']]" };
    await assert.rejects(async () => {
      for await (const event of client().stream(PRO, { input })) assert(event);
    }, /out of foxes/);
  },
  async pages_are_walked() {
    const replicate = client();
    for (let number = 0; number < 110; number++) {
      await replicate.predictions.create({
        model: PRO,
        input: { prompt: "held [[outcome=hold]]" },
      });
    }
    const seen = [];
    for await (const batch of replicate.paginate(replicate.predictions.list)) {
      seen.push(...batch.map((item) => item.id));
    }
    assert(seen.length >= 110);
    assert.equal(new Set(seen).size, seen.length);
  },
  async files_are_created_listed_and_deleted() {
    const replicate = client();
    const file = await replicate.files.create(new File([photo], "photo.jpg"), { place: "here" });
    assert.deepEqual([file.name, file.content_type], ["photo.jpg", "image/jpeg"]);
    assert.deepEqual(file.metadata, { place: "here" });
    assert.equal((await replicate.files.get(file.id)).checksums.sha256, file.checksums.sha256);
    const listed = await replicate.files.list();
    assert(listed.results.some((item) => item.id === file.id));
    assert.equal(await replicate.files.delete(file.id), true);
    await assert.rejects(replicate.files.get(file.id), /404/);
  },
  async models_search_and_the_rest_are_read() {
    const replicate = client();
    const model = await replicate.models.get("black-forest-labs", "flux-kontext-dev");
    assert(model.latest_version.openapi_schema.components.schemas.Input);
    assert((await replicate.models.list()).results.length > 5);
    assert.equal((await replicate.models.search("kontext max")).results[0].name, "flux-kontext-max");
    assert.equal((await replicate.accounts.current()).username, "default");
    assert((await replicate.hardware.list()).length);
    assert((await replicate.collections.list()).results.length);
    assert((await replicate.collections.get("image-editing")).models.length);
    assert((await replicate.deployments.list()).results.length);
    assert.deepEqual((await replicate.trainings.list()).results, []);
  },
  async bad_input_is_told_by_field() {
    await assert.rejects(
      client().run(SCHNELL, { input: { num_inference_steps: 10 } }),
      /- input: prompt is required/,
    );
  },
  async a_webhook_passes_the_clients_own_validator() {
    const replicate = client();
    const made = await replicate.predictions.create({
      model: PRO,
      input: { prompt: "für Elise", guidance: 3.0 },
      webhook: process.env.HOOK,
      webhook_events_filter: ["completed"],
    });
    const { headers, body } = await (await fetch(process.env.HOOK)).json();
    const { key } = await replicate.webhooks.default.secret.get();
    const proof = {
      id: headers["webhook-id"],
      timestamp: headers["webhook-timestamp"],
      signature: headers["webhook-signature"],
      secret: key,
    };
    assert(await validateWebhook({ ...proof, body }));
    // The common path of web frameworks: the body was parsed before.
    assert(await validateWebhook({ ...proof, body: JSON.stringify(JSON.parse(body)) }));
    assert(!(await validateWebhook({ ...proof, body: body.replace("Elise", "Luise") })));
    const told = JSON.parse(body);
    assert.deepEqual([told.id, told.status], [made.id, "succeeded"]);
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
