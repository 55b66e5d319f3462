-- Fair queueing: give portions of jobs to the pool as buckets allow.
-- Needs    gate, buckets, withdraw
local function join(id)
  local h = call('HMGET', sender_key(id), 'rate_max', 'paused', 'pass')
  if not h[1] or h[2] == '1' or call('ZCARD', sender_key(id) .. ':jobs') == 0 then return end
  local vt = num(call('HGET', G, 'vt'))
  call('ZADD', P .. 'turns', 'NX', string.format('%.3f', math.max(num(h[3]), vt)), id)
end

-- Ask for a higher mark when half a step or less is left below it.
local function near_mark(id, cursor, recipients, reserved, step)
  if reserved < recipients and cursor >= reserved - step / 2 then call('SADD', P .. 'low', id) end
end

-- Put the job among its sender's runnable jobs when something of it may go now, else set its timer.
local function offer(id)
  local k = job_key(id)
  local h = call('HMGET', k, 'state', 'sender', 'cursor', 'recipients', 'reserved', 'tag', 'expires_ms',
                 'scheduled_ms', 'rate', 'bucket_ms')
  local state, expires = h[1], num(h[7])
  if not state or ENDED[state] then return end
  if state == 'cancelling' then withdraw(id, 7, CANCELLED); return end
  if expires > 0 and expires <= now then withdraw(id, 5, EXPIRED); return end
  if expires > 0 then wake_at('j:' .. id, expires) end
  if state == 'paused' then return end
  if state == 'scheduled' then
    if num(h[8]) > now then wake_at('j:' .. id, num(h[8])); return end
    set_state(id, 'queued')
    tell_state(id)
    call('SADD', P .. 'changed', id)
  end
  local has = num(h[3]) < math.min(num(h[4]), num(h[5]))
  local again = call('ZRANGE', k .. ':again', 0, 0, 'WITHSCORES')
  if again[1] then
    if num(again[2]) <= now then has = true else wake_at('j:' .. id, num(again[2])) end
  end
  if has and num(h[9]) > 0 and num(h[10]) > now + AHEAD_MS then
    wake_at('j:' .. id, num(h[10]) - AHEAD_MS)
    return
  end
  if not has then return end
  local tag = math.max(num(h[6]), num(call('HGET', sender_key(h[2]), 'start')))
  call('ZADD', sender_key(h[2]) .. ':jobs', 'NX', string.format('%.3f', tag), id)
  join(h[2])
end

local function wake()
  for _, member in ipairs(call('ZRANGEBYSCORE', P .. 'timers', '-inf', int(now), 'LIMIT', 0, 64)) do
    call('ZREM', P .. 'timers', member)
    local kind, id = string.sub(member, 1, 1), string.sub(member, 3)
    if kind == 's' then join(id) else offer(id) end
  end
end

-- Give one portion of the next job in turn to the pool; false when nobody can be served now.
local function release_one(cap, concurrency)
  local first = call('ZRANGE', P .. 'turns', 0, 0, 'WITHSCORES')
  local sid, pass = first[1], num(first[2])
  if not sid then return false end
  local s, jobs = sender_of(sid), sender_key(sid) .. ':jobs'
  local top = call('ZRANGE', jobs, 0, 0, 'WITHSCORES')
  local id = top[1]
  if not s or s.paused or not id then call('ZREM', P .. 'turns', sid); return true end
  if s.blocked > now then
    call('ZREM', P .. 'turns', sid)
    wake_at('s:' .. sid, s.blocked)
    return true
  end
  if s.rate > 0 and s.bucket > now + AHEAD_MS + math.max(625, 1000 / s.rate) + 1 then
    -- Only a clock that went back can leave it there.
    s.bucket = now + AHEAD_MS + 1
    call('HSET', sender_key(sid), 'bucket_ms', int(s.bucket))
  end
  if s.rate > 0 and s.bucket > now + AHEAD_MS then
    call('ZREM', P .. 'turns', sid)
    wake_at('s:' .. sid, math.ceil(s.bucket) - AHEAD_MS)
    return true
  end
  local k = job_key(id)
  local h = call('HMGET', k, 'state', 'cursor', 'recipients', 'reserved', 'chunk_size', 'rate', 'bucket_ms',
                 'weight', 'expires_ms', 'step')
  local expires, job_rate, job_bucket = num(h[9]), num(h[6]), num(h[7])
  if (h[1] ~= 'queued' and h[1] ~= 'running') or (expires > 0 and expires <= now)
     or (job_rate > 0 and job_bucket > now + AHEAD_MS) then
    call('ZREM', jobs, id)
    offer(id)
    return true
  end
  local rate = s.rate
  if job_rate > 0 and (rate == 0 or job_rate < rate) then rate = job_rate end
  local size = num(h[5])
  local whole = rate == 0 and size or math.max(1, math.floor(s.piece_s * rate))
  local most, stretch = whole, whole
  local window = cap
  if s.rate > 0 then
    -- Where answers are slower than the gap, a claim lasts as long as its answers take: also 1 s.
    if rate * s.latency_s > concurrency then
      most = math.max(concurrency, math.min(whole, math.floor(concurrency / s.latency_s)))
      -- But a chunk of 50 in pieces of 49 and 1 is twice the work.
      stretch = math.min(whole, math.floor(1.25 * most))
    end
    window = math.ceil(s.rate * (0.5 + s.latency_s) / math.min(most, size)
                       + math.max(1, s.rate * s.latency_s / concurrency)) + 1
  end
  if call('ZCARD', P .. 'turns') > 1 then window = math.min(window, math.max(4, math.floor(cap / 2))) end
  if s.outstanding >= window then call('ZREM', P .. 'turns', sid); return true end
  local cursor, recipients, reserved = num(h[2]), num(h[3]), num(h[4])
  local limit = math.min(recipients, reserved)
  local again = call('ZRANGEBYSCORE', k .. ':again', '-inf', int(now), 'LIMIT', 0, 1)
  local chunk, offsets, n
  if again[1] then
    local score = call('ZSCORE', k .. ':again', again[1])
    chunk, offsets = string.match(again[1], '^(%d+):(.*)$')
    n = math.min(most, #offsets / 2)
    call('ZREM', k .. ':again', again[1])
    if n < #offsets / 2 then
      call('ZADD', k .. ':again', score, chunk .. ':' .. string.sub(offsets, 2 * n + 1))
    end
    offsets = string.sub(offsets, 1, 2 * n)
  elseif cursor < limit then
    local c = math.floor(cursor / size)
    local from = cursor - c * size
    n = math.min(size - from, limit - cursor)
    if n > stretch then n = math.min(n, most) end
    chunk, offsets = int(c), ''
    if n < math.min(size, recipients - c * size) then
      local list = {}
      for i = from, from + n - 1 do list[#list + 1] = u16(i) end
      offsets = table.concat(list)
    end
    cursor = cursor + n
  else
    call('ZREM', jobs, id)
    offer(id)
    return true
  end
  local start = spend(s, id, job_rate, job_bucket, n)
  local gap = rate == 0 and 0 or math.floor(1000000 / rate)
  -- A claim whose lanes all wait for answers falls behind and runs into the next one.
  if s.is_careful then gap = math.max(gap, math.floor(1500000 * s.latency_s / concurrency)) end
  call('XADD', P .. 'ready', '*', 'j', id, 'c', chunk, 'o', offsets, 'n', int(n), 's', int(start),
       'g', int(gap), 'd', '1', 'x', sid, 'r', int(now))
  local second, rel = math.floor(now / 1000), call('HMGET', sender_key(sid), 'second', 'released')
  local released = num(rel[1]) == second and num(rel[2]) or 0
  call('HSET', sender_key(sid), 'outstanding', int(s.outstanding + 1), 'pass', string.format('%.3f', pass + n),
       'start', top[2], 'second', int(second), 'released', int(released + n), 'rate_now', string.format('%.3f', s.rate))
  if released == 0 then call('HSET', sender_key(sid), 'released_before', int(num(rel[2]))) end
  call('HSET', G, 'vt', string.format('%.3f', pass))
  call('ZADD', P .. 'turns', 'XX', string.format('%.3f', pass + n), sid)
  local tag = string.format('%.3f', num(top[2]) + n / math.max(1, num(h[8])))
  call('ZADD', jobs, tag, id)
  call('HSET', k, 'cursor', int(cursor), 'tag', tag)
  near_mark(id, cursor, recipients, reserved, num(h[10]))
  if h[1] == 'queued' then
    call('HSETNX', k, 'started_ms', int(now))
    set_state(id, 'running')
    tell_state(id)
    call('SADD', P .. 'changed', id)
  end
  return true
end

local function release(budget)
  local g = call('HMGET', G, 'hold_until', 'off', 'born', 'full', 'cap', 'concurrency', 'outcomes_max')
  if num(g[1]) > now or is_off(g[2]) or not g[3] or g[4] == '1' then return end
  if call('XLEN', P .. 'outcomes') > num(g[7] or '200000') then return end
  wake()
  local cap, concurrency = math.max(16, num(g[5])), math.max(1, num(g[6] or '5'))
  for _ = 1, budget do
    if call('XLEN', P .. 'ready') >= cap or not release_one(cap, concurrency) then return end
  end
end
