-- What several scripts need: time, keys, ranks, counters, buckets and release. Joined in front.
local P, G = ARGV[1], KEYS[1]
local call = redis.call
local TIME = call('TIME')
local now = tonumber(TIME[1]) * 1000 + math.floor(tonumber(TIME[2]) / 1000)

-- pending < retry < intent < unknown = cancelled < skipped < failed < sent; index = state
local RANK = {[0] = 0, 2, 6, 5, 1, 4, 3, 3}
local NAME = {[1] = 'in_flight', [2] = 'sent', [3] = 'failed', [4] = 'retrying', [5] = 'skipped',
              [6] = 'unknown', [7] = 'cancelled'}
local OUTCOME = {[2] = true, [3] = true, [5] = true, [6] = true, [7] = true}
local ENDED = {completed = true, cancelled = true}
local EXPIRED, CANCELLED, CRASH = 2, 4, 5
-- How far ahead of now a bucket may be when its sender still gets a turn.
local AHEAD_MS = 500
-- A piece is what 0.625 s of the rate send, so that a claim is short beside a lease.
local PIECE_S = 0.625

local function int(n) return string.format('%.0f', n) end
local function num(x) return tonumber(x or '') or 0 end
local function job_key(id) return P .. 'job:' .. id end
local function sender_key(id) return P .. 'sender:' .. id end

local function u16(n) return string.char(math.floor(n / 256), n % 256) end
local function u32(n)
  return string.char(math.floor(n / 16777216) % 256, math.floor(n / 65536) % 256,
                     math.floor(n / 256) % 256, n % 256)
end

-- A timer moves only earlier: a later wish must not push an earlier one away (pitfalls L11).
local function wake_at(member, at) call('ZADD', P .. 'timers', 'LT', int(at), member) end

local function is_off(flag)
  return flag == '1' or call('ZCOUNT', P .. 'off', int(now), '+inf') > 0
end

-- How long nothing may be released or begun on this shard, ms; 0 = go on.
local function wait_ms()
  local g = call('HMGET', G, 'hold_until', 'off', 'born')
  local wait = math.max(0, num(g[1]) - now)
  if not g[3] or is_off(g[2]) then wait = math.max(wait, 500) end
  return wait
end

local function note(id, is_end)
  local most = call('HGET', G, 'events_max') or '20000'
  local event = call('XADD', P .. 'events', 'MAXLEN', '~', most, '*', 'j', id, 'e', is_end and '1' or '')
  call('HSET', job_key(id), 'event', event)
  return event
end

-- Tell PostgreSQL of the job's state as it is now.
local function tell_state(id, event)
  local h = call('HMGET', job_key(id), 'state', 'version', 'by', 'reason', 'started_ms', 'finished_ms')
  call('XADD', P .. 'outcomes', '*', 'k', 'state', 'j', id, 's', h[1], 'v', h[2], 'b', h[3] or '',
       'r', h[4] or '', 'e', event or '', 't', int(now), 'a', h[5] or '0', 'f', h[6] or '0')
end

local function set_state(id, state)
  local k = job_key(id)
  call('HSET', k, 'state', state)
  call('HINCRBY', k, 'version', 1)
end

-- Give the job its final state when every recipient has an outcome; return the state it has now.
local function settle_end(id)
  local k = job_key(id)
  local h = call('HMGET', k, 'state', 'recipients', 'sent', 'failed', 'skipped', 'unknown', 'cancelled', 'sender')
  if not h[1] or ENDED[h[1]] then return h[1] end
  local done = num(h[3]) + num(h[4]) + num(h[5]) + num(h[6]) + num(h[7])
  if done < num(h[2]) then return h[1] end
  local state = h[1] == 'cancelling' and 'cancelled' or 'completed'
  call('HSET', k, 'finished_ms', int(now), 'ended', '1')
  set_state(id, state)
  call('SREM', P .. 'low', id)
  call('SREM', P .. 'changed', id)
  call('ZREM', P .. 'timers', 'j:' .. id)
  call('ZREM', sender_key(h[8]) .. ':jobs', id)
  tell_state(id, note(id, true))
  return state
end

-- Move counters by a table of state -> difference, and what hangs on them.
local function count(id, sender, delta, reasons, speed, speed_at)
  local k, finished = job_key(id), 0
  local minute = P .. 'minute:' .. int(math.floor(now / 60000))
  for state, n in pairs(delta) do
    if n ~= 0 and NAME[state] then
      call('HINCRBY', k, NAME[state], n)
      if OUTCOME[state] then
        finished = finished + n
        -- Its lifetime is set once: the first count of a field of that minute says so.
        if n > 0 and call('HINCRBY', minute, NAME[state], n) == n then call('EXPIRE', minute, 90000) end
      end
    end
  end
  for reason, n in pairs(reasons or {}) do call('HINCRBY', k, 'by:' .. reason, n) end
  if finished ~= 0 then
    call('HINCRBY', sender_key(sender), 'backlog', -finished)
    -- Moving average with a time constant of 5 s.
    local kept = num(speed) * math.exp(-math.max(0, now - num(speed_at)) / 5000)
    call('HSET', k, 'speed', string.format('%.4f', kept + finished / 5), 'speed_at', int(now))
  end
  call('SADD', P .. 'changed', id)
end

-- Turn what is not in a claim (unreleased, and waiting to come back) into an outcome at once.
local function withdraw(id, to, reason)
  local k = job_key(id)
  local h = call('HMGET', k, 'cursor', 'recipients', 'chunk_size', 'sender')
  local cursor, recipients, size = num(h[1]), num(h[2]), num(h[3])
  local ranges, delta, total = {}, {}, 0
  if cursor < recipients then
    local tail = call('GETRANGE', k .. ':states', int(cursor), int(recipients - 1))
    local out, n = string.gsub(tail, '%z', string.char(to))
    if n > 0 then
      local from, first, last = 1, nil, nil
      first, last = string.find(tail, '%z+', from)
      while first do
        ranges[#ranges + 1] = u32(cursor + first - 1) .. u32(cursor + last - 1)
        from = last + 1
        first, last = string.find(tail, '%z+', from)
      end
      call('SETRANGE', k .. ':states', int(cursor), out)
      total = n
    end
    call('HSET', k, 'cursor', int(recipients))
  end
  for _, member in ipairs(call('ZRANGE', k .. ':again', 0, 199)) do
    local chunk, offsets = string.match(member, '^(%d+):(.*)$')
    for i = 1, #offsets, 2 do
      local high, low = string.byte(offsets, i, i + 1)
      local at = num(chunk) * size + high * 256 + low
      local byte = string.byte(call('GETRANGE', k .. ':states', int(at), int(at)))
      local state = byte % 8
      if state == 0 or state == 4 then
        call('SETRANGE', k .. ':states', int(at), string.char(byte - state + to))
        if state == 4 then delta[4] = (delta[4] or 0) - 1 end
        total = total + 1
        ranges[#ranges + 1] = u32(at) .. u32(at)
      end
    end
    call('ZREM', k .. ':again', member)
  end
  if total > 0 then
    delta[to] = (delta[to] or 0) + total
    count(id, h[4], delta, {[reason] = to == 5 and total or nil})
    call('XADD', P .. 'outcomes', '*', 'k', 'range', 'j', id, 's', int(to), 'r', int(reason),
         'p', table.concat(ranges))
  end
  if call('ZCARD', k .. ':again') > 0 then wake_at('j:' .. id, now) end
  return settle_end(id)
end

-- The sender's rate now: a pure function of (rate, ceiling, rate_at, now), whatsapp 7.2.
local function climbed(rate, ceiling, rate_at, top)
  if ceiling == 0 then return top end
  local s = math.max(0, now - rate_at) / 1000
  if s > 600 then return top end
  if rate < 0.95 * ceiling then
    local t = (0.95 * ceiling - rate) / (0.1 * ceiling)
    if s < t then rate = rate + 0.1 * ceiling * s; s = 0 else rate = 0.95 * ceiling; s = s - t end
  end
  local t = (1.03 * ceiling - rate) / (0.002 * ceiling)
  if s < t then rate = rate + 0.002 * ceiling * s else rate = 1.03 * ceiling * 1.05 ^ (s - t) end
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
  if s.ceiling > 0 and now - num(h[4]) < 600000 then s.burst = 0.1 * s.rate
  elseif s.burst == 0 then s.burst = 0.25 * s.rate end
  s.burst_ms = s.rate > 0 and 1000 * s.burst / s.rate or 250
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

local function join(id)
  local h = call('HMGET', sender_key(id), 'rate_max', 'paused', 'pass')
  if not h[1] or h[2] == '1' or call('ZCARD', sender_key(id) .. ':jobs') == 0 then return end
  local vt = num(call('HGET', G, 'vt'))
  call('ZADD', P .. 'turns', 'NX', string.format('%.3f', math.max(num(h[3]), vt)), id)
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
  local most = rate == 0 and size or math.max(1, math.floor(PIECE_S * rate))
  local window = cap
  if s.rate > 0 then
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
    n = math.min(most, size - from, limit - cursor)
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
  call('XADD', P .. 'ready', '*', 'j', id, 'c', chunk, 'o', offsets, 'n', int(n), 's', int(start),
       'g', int(gap), 'd', '1', 'x', sid)
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
  if reserved < recipients and cursor >= reserved - num(h[10]) / 2 then call('SADD', P .. 'low', id) end
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

-- Is this entry pending for this worker? A requeue gives a new id, so a stale one never is.
local function owns(worker, entry)
  local p = call('XPENDING', P .. 'ready', 'workers', entry, entry, 1)
  return p[1] ~= nil and p[1][2] == worker
end

local function fields_of(entry)
  local e = call('XRANGE', P .. 'ready', entry, entry)
  if not e[1] then return nil end
  local f = {}
  for i = 1, #e[1][2], 2 do f[e[1][2][i]] = e[1][2][i + 1] end
  return f
end

local function close(entry, sender)
  call('XACK', P .. 'ready', 'workers', entry)
  call('XDEL', P .. 'ready', entry)
  if sender and call('HINCRBY', sender_key(sender), 'outstanding', -1) < 0 then
    call('HSET', sender_key(sender), 'outstanding', '0')
  end
end

-- Put a delivered entry back under a new id, which fences whoever held it.
local function requeue(entry, more)
  local f = fields_of(entry)
  if f then
    call('XADD', P .. 'ready', '*', 'j', f.j, 'c', f.c, 'o', f.o, 'n', f.n, 's', f.s, 'g', f.g,
         'd', int(num(f.d) + more), 'x', f.x)
  end
  call('XACK', P .. 'ready', 'workers', entry)
  call('XDEL', P .. 'ready', entry)
end

local function forget(worker)
  if #call('XPENDING', P .. 'ready', 'workers', '-', '+', 1, worker) > 0 then return false end
  call('XGROUP', 'DELCONSUMER', P .. 'ready', 'workers', worker)
  call('ZREM', P .. 'workers', worker)
  call('HDEL', P .. 'slots', worker)
  call('HDEL', P .. 'told', worker)
  return true
end

local function tell_limits(id)
  local h = call('HMGET', job_key(id), 'state', 'event')
  return h[1] or '', h[2] or ''
end

-- Make a job's keys; chunks are staged already. Returns what `submit` and `restore` answer.
local function birth(id, fields, states, cursor, counters)
  local k = job_key(id)
  local state, event = tell_limits(id)
  if state ~= '' then return {'exists', state, event, '-1'} end
  local h = {}
  for i = 1, #fields, 2 do h[fields[i]] = fields[i + 1] end
  local recipients, size = num(h.recipients), num(h.chunk_size)
  local chunks = math.ceil(recipients / size)
  if states == '' then
    if call('XLEN', k .. ':chunks') < chunks then
      local have = call('XRANGE', k .. ':chunks', '-', '+')
      local missing = 0
      for _, e in ipairs(have) do
        if e[1] ~= int(missing + 1) .. '-0' then break end
        missing = missing + 1
      end
      return {'missing', '', '', int(missing)}
    end
    states = string.rep(string.char(0), recipients)
  end
  call('PERSIST', k .. ':chunks')
  call('SET', k .. ':states', states)
  call('HSET', k, unpack(fields))
  call('HSET', k, 'cursor', int(cursor), 'state', num(h.scheduled_ms) > now and 'scheduled' or 'queued')
  if #counters > 0 then call('HSET', k, unpack(counters)) end
  local done = 0
  for i = 1, #counters, 2 do
    if counters[i] ~= 'retrying' and counters[i] ~= 'in_flight' and string.sub(counters[i], 1, 3) ~= 'by:' then
      done = done + num(counters[i + 1])
    end
  end
  call('HINCRBY', sender_key(h.sender), 'backlog', int(recipients - done))
  tell_state(id)
  event = note(id, false)
  settle_end(id)
  offer(id)
  release(8)
  state, event = tell_limits(id)
  return {'made', state, event, '-1'}
end
