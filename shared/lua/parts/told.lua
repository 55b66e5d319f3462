-- What report and close share: facts raise states, counters and outcomes hang on the differences.
-- Needs    states, claims, ends, buckets
local worker, entry, id, chunk = ARGV[2], ARGV[3], ARGV[4], num(ARGV[5])
local facts, record, throttled = ARGV[6], ARGV[7], ARGV[8]
local k = job_key(id)
local owner = owns(worker, entry)
local h = call('HMGET', k, 'state', 'sender', 'chunk_size', 'recipients', 'expires_ms', 'rate', 'bucket_ms', 'trip_run',
               'speed', 'speed_at')
local state, sender, size, expires = h[1], h[2], num(h[3]), num(h[5])
local running = (state == 'running' or state == 'queued') and (expires == 0 or expires > now)
local base = chunk * size
local length = math.min(size, num(h[4]) - base)
local bytes, delta = {}, {[0] = 0, 0, 0, 0, 0, 0, 0, 0}
local reasons, dues, kept, applied, dirty = {}, {}, {}, 0, false
local trips, run_now, others, trip_reason, is_cut = 0, 0, 0, nil, 0

-- The job is gone: its facts belong to the archive all the same.
local function tell_gone()
  if #facts > 0 then
    call('XADD', P .. 'outcomes', '*', 'k', 'facts', 'j', id, 'c', int(chunk), 'z', '0', 'f', facts, 'd', record)
  end
  return {owner and '1' or '0', 'gone', 0, 0}
end

local function move(x, old, new)
  local was, is = old % 8, new % 8
  delta[was] = delta[was] - 1
  delta[is] = delta[is] + 1
  bytes[x], dirty, applied = new, true, applied + 1
end

local function apply_facts()
  bytes = {string.byte(call('GETRANGE', k .. ':states', base, base + length - 1), 1, -1)}
  for i = 1, #facts, 9 do
    local a, b, to, attempt, r1, r2, d1, d2, d3 = string.byte(facts, i, i + 8)
    local x = a * 256 + b + 1
    local old = bytes[x]
    if old then
      local was = old % 8
      local used = (old - was) / 8
      if OUTCOME[to] then
        if RANK[to] > RANK[was] then
          -- Of an earlier attempt, it is told with the attempts that were used since. Who is skipped
          -- has not used the one that was noted.
          local upto = to == 5 and attempt or math.max(attempt, used)
          move(x, old, upto * 8 + to)
          kept[#kept + 1] = string.sub(facts, i, i + 2) .. string.char(upto)
                            .. string.sub(facts, i + 4, i + 8)
          local reason = (r1 % 128) * 256 + r2
          if to == 3 or to == 5 then reasons[reason] = (reasons[reason] or 0) + 1 end
          if to == 3 and r1 >= 128 then
            trips, run_now, trip_reason = trips + 1, run_now + 1, reason
          else
            others, run_now = others + 1, 0
          end
        end
      elseif to == 1 then
        if RANK[was] < RANK[1] and attempt > used then move(x, old, attempt * 8 + 1) end
      else
        dues[x] = d1 * 65536 + d2 * 256 + d3
        -- Only the owner lowers, and only an intent of the same attempt.
        if owner and was == 1 and used == attempt then
          move(x, old, to == 4 and old + 3 or math.max(0, attempt - 1) * 8)
        end
      end
    end
  end
end

-- Graph asked to wait: block the sender, empty its bucket, cut its rate.
local function slow_down()
  local sk, s = sender_key(sender), sender_of(sender)
  if not s then return end
  local blocked, rate = math.max(now + math.max(1000, num(throttled)), s.blocked), s.rate
  -- A second of messages is in the air and all of them say the same: news comes after the silence.
  if s.blocked <= now then
    -- At most one cut in 2 s: one that is due sooner is made then, and the silence lasts until it.
    local at = math.max(now, num(call('HGET', sk, 'last_cut')) + 2000)
    if at > now + 2000 then at = now end
    if rate == 0 then rate = math.max(1, num(call('HGET', sk, 'released_before'))) end
    local floor = math.max(num(call('HGET', sk, 'rate_min') or '1'), 0.1)
    call('HSET', sk, 'ceiling', string.format('%.3f', rate), 'last_cut', int(at))
    call('HINCRBY', sk, 'cuts', 1)
    rate, is_cut, blocked = math.max(floor, 0.7 * rate), 1, math.max(blocked, at)
  end
  -- It climbs by seconds without a throttle: from the end of the silence, not through it.
  call('HSET', sk, 'rate', string.format('%.3f', rate), 'rate_at', int(blocked), 'blocked_until', int(blocked),
       'why', 'throttled', 'bucket_ms', int(math.max(s.bucket, blocked)))
  wake_at('s:' .. sender, blocked)
end

-- The breaker, whatsapp 6.3: 20 equal content errors in a row, or 50 that are half of all.
local function watch_breaker()
  local b = call('HMGET', k, 'trip_code', 'trips', 'since', 'sent', 'failed', 'skipped', 'unknown', 'cancelled')
  local total, run = num(b[2]), num(h[8])
  if trip_reason and b[1] ~= int(trip_reason) then total, run = 0, 0 end
  if others > 0 then run = 0 end
  run, total = run + run_now, total + trips
  call('HSET', k, 'trip_code', trip_reason and int(trip_reason) or (b[1] or ''), 'trips', int(total),
       'trip_run', int(run))
  local since = num(b[4]) + num(b[5]) + num(b[6]) + num(b[7]) + num(b[8]) - num(b[3])
  if running and (run >= 20 or (total >= 50 and total * 2 >= since)) then
    call('HSET', k, 'by', 'system', 'reason', 'breaker:' .. (trip_reason and int(trip_reason) or b[1] or ''))
    set_state(id, 'paused')
    call('ZREM', sender_key(sender) .. ':jobs', id)
    tell_state(id)
  end
end

-- Store the changed bytes and what hangs on them.
local function store()
  if dirty then
    call('SETRANGE', k .. ':states', base, string.char(unpack(bytes)))
    count(id, sender, delta, reasons, h[9], h[10])
  end
  if #kept > 0 then
    call('XADD', P .. 'outcomes', '*', 'k', 'facts', 'j', id, 'c', chunk, 'z', size, 'f', table.concat(kept), 'd', record)
  end
  if throttled ~= '' then slow_down() end
  if trips > 0 or (others > 0 and num(h[8]) > 0) then watch_breaker() end
end

local function answer()
  -- A running job past its deadline took no intents: its word must not sound like go.
  if not running and (state == 'running' or state == 'queued') then state = 'expired' end
  return {owner and '1' or '0', state, applied, is_cut}
end
