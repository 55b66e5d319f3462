// BullMQ with undici. `enqueue COUNT [PIECE]` fills the queue, PIECE jobs an addBulk; `work` sends.
const { createRequire } = require('node:module');
const packages = createRequire(`${process.env.BENCH_HOME}/bullmq/package.json`);
const { Queue, Worker } = packages('bullmq');
const { Pool } = packages('undici');

const { BENCH_REDIS, BENCH_ORIGIN, BENCH_CONCURRENCY, BENCH_RATE } = process.env;
const url = new URL(BENCH_REDIS);
const connection = { host: url.hostname, port: +url.port, password: url.password };
const concurrency = +BENCH_CONCURRENCY;
const text = 'Your order has shipped. '.repeat(3);
const job = (i) => ({
  name: 's', data: { to: '+1555' + String(i).padStart(7, '0'), text }, opts: { attempts: 3 },
});

async function enqueue(count, piece) {
  const queue = new Queue('wa', { connection });
  await queue.waitUntilReady();
  const jobs = Array.from({ length: count }, (_, i) => job(i));
  const cpu = process.cpuUsage();
  const start = process.hrtime.bigint();
  for (let i = 0; i < count; i += piece) await queue.addBulk(jobs.slice(i, i + piece));
  const s = Number(process.hrtime.bigint() - start) / 1e9;
  const used = process.cpuUsage(cpu);
  console.log('ENQUEUED ' + JSON.stringify({ s, cpu_s: (used.user + used.system) / 1e6 }));
  process.exit(0);
}

function work() {
  const pool = new Pool(BENCH_ORIGIN, {
    connections: concurrency, pipelining: 1, keepAliveTimeout: 120000,
  });
  const headers = {
    authorization: 'Bearer EAAG' + 'x'.repeat(196), 'content-type': 'application/json',
  };
  const send = async ({ data }) => {
    const body = JSON.stringify({
      messaging_product: 'whatsapp', recipient_type: 'individual', to: data.to, type: 'text',
      text: { preview_url: false, body: data.text },
    });
    const path = '/v22.0/123456789012345/messages';
    const answer = await pool.request({ path, method: 'POST', headers, body });
    const reply = await answer.body.json();
    if (answer.statusCode !== 200) throw new Error('HTTP ' + answer.statusCode);
    return reply.messages[0].id;
  };
  // Its own limiter: so many in a second.
  const limiter = +BENCH_RATE ? { max: +BENCH_RATE, duration: 1000 } : undefined;
  const worker = new Worker('wa', send, { connection, concurrency, limiter });
  worker.on('error', (error) => console.error(error.message));
}

const [, , what, count, piece] = process.argv;
if (what === 'enqueue') enqueue(+count, +(piece || 1000));
else work();
