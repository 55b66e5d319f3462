'use strict';
// Everything from the server goes into the page as text, never as markup.
const $ = (id) => document.getElementById(id);
const FINAL = ['completed', 'cancelled'];
const SHOWN = ['sent', 'failed', 'skipped', 'cancelled', 'unknown', 'in_flight', 'retrying'];
let source = null;
let me = null;

async function api(method, path, body, headers = {}) {
  const options = { method, headers: { ...headers } };
  if (body !== undefined) {
    options.headers['Content-Type'] = 'application/json';
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const text = await response.text();
  const data = text ? JSON.parse(text) : null;
  if (!response.ok) {
    const rows = (data?.errors ?? []).slice(0, 5).map((e) => `${e.pointer}: ${e.detail}`);
    throw Object.assign(new Error([data?.detail ?? response.statusText, ...rows].join('\n')), { status: response.status });
  }
  return data;
}

// Run what a button asks for: one at a time, and what goes wrong is said beside it.
async function attempt(place, button, act) {
  const error = place.querySelector('.error');
  if (error) error.textContent = '';
  if (button) button.disabled = true;
  try {
    return await act();
  } catch (problem) {
    if (problem.status === 401 && me) return enter();
    if (error) error.textContent = problem.message;
  } finally {
    if (button) button.disabled = false;
  }
}

function enter() {
  me = null;
  leave();
  $('work').hidden = $('who').hidden = true;
  $('enter').hidden = false;
  $('login-form').elements.email.focus();
}

async function start() {
  try {
    me = await api('GET', '/api/session');
  } catch {
    return enter();
  }
  $('email').textContent = me.email;
  $('enter').hidden = true;
  $('work').hidden = $('who').hidden = false;
  if (location.pathname === '/login') history.replaceState(null, '', '/');
  await Promise.all([list(), open()]);
}

async function list() {
  await attempt($('work'), $('reload'), async () => {
    const { data } = await api('GET', '/api/bulk/jobs?limit=20');
    $('none').hidden = data.length > 0;
    $('jobs').replaceChildren(...data.map((job) => {
      const link = document.createElement('a');
      link.href = `/jobs/${job.jobId}`;
      link.append(span(job.name || job.jobId), span(inShort(job)));
      const item = document.createElement('li');
      item.append(link);
      return item;
    }));
  });
}

function span(text, className) {
  const made = document.createElement('span');
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function inShort(job) {
  return `${job.state} ${job.progress.done}/${job.progress.total}`;
}

function leave() {
  source?.close();
  source = null;
  $('job').hidden = true;
}

async function open() {
  leave();
  const id = location.pathname.match(/^\/jobs\/(job_[0-9a-z]{28})$/)?.[1];
  if (!id) return;
  await attempt($('work'), null, async () => {
    const job = await api('GET', `/api/bulk/jobs/${id}`);
    $('job').hidden = false;
    $('job-name').textContent = job.name || 'Job';
    $('job-id').textContent = id;
    $('sandbox').hidden = !job.sandbox;
    show(job);
    follow(id);
  });
}

function follow(id) {
  const mine = source = new EventSource(`/realtime/bulk/${id}`);
  const said = (text) => { $('link').textContent = text; };
  said('connecting…');
  mine.onopen = () => said('live');
  mine.onmessage = (event) => {
    const job = JSON.parse(event.data);
    if (job.jobId === id && source === mine) show(job);
    if (job.type === 'end') { mine.close(); said('finished'); list(); }
  };
  mine.addEventListener('revoked', () => { mine.close(); enter(); });
  mine.onerror = () => said(mine.readyState === EventSource.CLOSED ? 'not live; reload the page' : 'reconnecting…');
}

function show(job) {
  const p = job.progress;
  const percent = p.total ? Math.floor(100 * p.done / p.total) : 0;
  const row = $('jobs').querySelector(`a[href="/jobs/${job.jobId}"] span:last-child`);
  if (row) row.textContent = inShort(job);
  $('state').textContent = job.state;
  $('state').className = `state ${job.state}`;
  $('bar').setAttribute('aria-valuenow', percent);
  for (const word of SHOWN) {
    const part = $('bar').querySelector(`.${word}`) ?? $('bar').appendChild(span('', word));
    part.style.width = p.total ? `${100 * p[word] / p.total}%` : '0';
  }
  const left = p.eta_s ? `, about ${duration(p.eta_s)} left` : '';
  $('pace').textContent = `${p.done.toLocaleString()} of ${p.total.toLocaleString()} (${percent} %)`
    + (job.state === 'running' ? `, ${p.rate}/s${left}` : '');
  $('wait').hidden = !job.wait;
  $('wait').textContent = job.wait ? `${job.wait.reason.replaceAll('_', ' ')}: ${job.wait.detail}${job.wait.until ? ` until ${new Date(job.wait.until).toLocaleTimeString()}` : ''}` : '';
  terms($('numbers'), [...SHOWN, 'queued', 'delivered', 'read'].map((w) => [w.replace('_', ' '), p[w].toLocaleString()]));
  const why = [...Object.entries(p.by_code).map(([code, n]) => [`Graph ${code}`, n]), ...Object.entries(p.by_reason)];
  $('why').hidden = why.length === 0;
  terms($('codes'), why);
  const over = FINAL.includes(job.state) || job.state === 'cancelling';
  $('pause').hidden = over || job.state === 'paused';
  $('resume').hidden = job.state !== 'paused';
  $('cancel').hidden = over;
}

function terms(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([term, value]) => {
    const dt = document.createElement('dt');
    const dd = document.createElement('dd');
    dt.textContent = term;
    dd.textContent = value;
    if (list.id !== 'numbers') return [dt, dd];
    const pair = document.createElement('div');
    pair.append(dt, dd);
    return pair;
  }));
}

function duration(seconds) {
  return seconds < 90 ? `${seconds} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function message(fields) {
  if (fields.kind.value === 'text') return { kind: 'text', text: { body: fields.body.value, preview_url: false } };
  const values = fields.values.value.split('\n').map((v) => v.trim()).filter(Boolean);
  const template = { name: fields.template.value.trim(), language_code: fields.language.value.trim() };
  if (values.length) template.components = [{ type: 'body', parameters: values.map((text) => ({ type: 'text', text })) }];
  return { kind: 'template', template };
}

$('login-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const { email, password } = event.target.elements;
  attempt(event.target, event.submitter, async () => {
    await api('POST', '/api/session', { email: email.value, password: password.value });
    password.value = '';
    await start();
  });
});

let key = null; // the same until a submission is answered: pressing twice makes one job
$('send-form').addEventListener('input', () => { key = null; });
$('send-form').addEventListener('change', (event) => {
  const kind = event.currentTarget.elements.kind.value;
  for (const part of document.querySelectorAll('[data-kind]')) part.hidden = part.dataset.kind !== kind;
});
$('send-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target;
  const fields = form.elements;
  attempt(form, event.submitter, async () => {
    key ??= Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');
    const body = {
      recipients: fields.recipients.value.split(/[\s,;]+/).filter(Boolean),
      name: fields.name.value.trim() || null,
      message: message(fields),
    };
    let job;
    try {
      job = await api('POST', '/api/bulk/send', body, { 'Idempotency-Key': key });
    } catch (problem) {
      if (problem.status) key = null;
      throw problem;
    }
    key = null;
    form.elements.recipients.value = '';
    go(`/jobs/${job.jobId}`);
    list();
  });
});

function go(path) {
  history.pushState(null, '', path);
  open();
  scrollTo(0, 0);
}

for (const action of ['pause', 'resume', 'cancel']) {
  $(action).addEventListener('click', (event) => {
    if (action === 'cancel' && !confirm('Cancel this job for good?')) return;
    const id = $('job-id').textContent;
    attempt($('job'), event.target, async () => show(await api('POST', `/api/bulk/jobs/${id}/${action}`)));
  });
}
$('jobs').addEventListener('click', (event) => {
  const link = event.target.closest('a');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(link.getAttribute('href'));
});
$('reload').addEventListener('click', list);
$('logout').addEventListener('click', async () => {
  await api('DELETE', '/api/session').catch(() => {});
  history.replaceState(null, '', '/login');
  enter();
});
addEventListener('popstate', open);
start();
