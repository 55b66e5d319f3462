-- A sender's rate now, and its bucket.
-- Needs    base
-- The sender's rate now, a pure function of its arguments: in two seconds to 0.9 of where it was cut,
-- from there in half a minute to that, and beyond it soon to the top, for then the limit has gone up
-- (decisions/0012).
local function climbed(rate, ceiling, rate_at, top)
  if ceiling == 0 then return top end
  local s = math.max(0, now - rate_at) / 1000
  if s > 600 then return top end
  if rate < 0.9 * ceiling then
    local t = (0.9 * ceiling - rate) / (0.1 * ceiling)
    if s < t then rate = rate + 0.1 * ceiling * s; s = 0 else rate = 0.9 * ceiling; s = s - t end
  end
  local t = math.max(0, ceiling - rate) / (0.003 * ceiling)
  if s < t then rate = rate + 0.003 * ceiling * s else rate = math.max(rate, ceiling) * 1.05 ^ (s - t) end
  if top > 0 and rate > top then rate = top end
  return rate
end

-- What release and begin must know of a sender; nil when its rate was never pushed (pitfalls L10).
local function sender_of(id)
  local h = call('HMGET', sender_key(id), 'rate', 'rate_max', 'ceiling', 'rate_at', 'bucket_ms',
                 'burst', 'latency_ms', 'outstanding', 'blocked_until', 'paused', 'pass', 'start')
  if not h[2] then return nil end
  local s = {id = id, top = num(h[2]), ceiling = num(h[3]), bucket = num(h[5]), burst = num(h[6]),
             latency_s = num(h[7] or '300') / 1000, outstanding = num(h[8]), blocked = num(h[9]),
             paused = h[10] == '1', pass = num(h[11]), start = num(h[12])}
  s.rate = climbed(num(h[1]), s.ceiling, num(h[4]), s.top)
  -- A piece is what so long of the rate sends: a claim is short beside a lease.
  s.piece_s = 0.625
  s.is_careful = s.ceiling > 0 and now - num(h[4]) < 600000
  -- After a throttle no burst: a tick's lateness spends what the far side allows of one already. Nor
  -- long pieces: one that slow answers delay is still under way when the next one begins.
  if s.is_careful then s.burst, s.piece_s = 1, 0.25
  elseif s.burst == 0 then s.burst = 0.25 * s.rate end
  -- The first of a burst is due at its start: burst - 1 gaps make burst messages, not one more.
  s.burst_ms = s.rate > 0 and 1000 * math.max(0, s.burst - 1) / s.rate or 250
  return s
end

-- Spend size messages of a sender's and a job's bucket; return when the first may start.
local function spend(s, id, job_rate, job_bucket, size)
  local start = now - s.burst_ms
  if s.rate > 0 then start = math.max(start, s.bucket) end
  if job_rate > 0 then start = math.max(start, job_bucket) end
  if s.rate > 0 then
    s.bucket = math.max(s.bucket, now - s.burst_ms) + size * 1000 / s.rate
    call('HSET', sender_key(s.id), 'bucket_ms', string.format('%.3f', s.bucket))
  end
  if job_rate > 0 then
    local bucket = math.max(job_bucket, now - s.burst_ms) + size * 1000 / job_rate
    call('HSET', job_key(id), 'bucket_ms', string.format('%.3f', bucket))
  end
  return start
end
