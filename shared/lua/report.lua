--- Take what a worker knows: facts raise states, counters and outcomes hang on the differences.
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  worker      ARGV[3]  entry      ARGV[4]  job      ARGV[5]  chunk
-- ARGV[6]  facts     9 bytes each: u16 index, u8 state, u8 attempt, u16 reason, u24 due_s
-- ARGV[7]  record    opaque details for the archive
-- ARGV[8]  intents   4 bytes each: u16 index, u8 attempt, u8 in_place
-- ARGV[9]  throttled '' or for how long Graph asked to wait, ms
-- ARGV[10] latency   mean answer time of this claim, ms; 0 = none
-- ARGV[11] offsets   of the claim, packed u16; '' = all of the chunk
-- ARGV[12] done      '1': close the claim
-- Reads    P ready, P job:<id>
-- Writes   P job:<id>, P job:<id>:states, P job:<id>:again, P job:<id>:chunks, P sender:<id>,
--          P sender:<id>:jobs, P ready, P outcomes, P events, P changed, P minute:<n>, P turns,
--          P timers, P low
-- Returns  {owner, job state | gone | expired, applied, blocked_until}
-- Repeat   finds no difference: no change but times
-- Cost     O(facts + intents), at done O(recipients of the chunk)
local worker, entry, id, chunk = ARGV[2], ARGV[3], ARGV[4], num(ARGV[5])
local facts, record, intents, offsets, done = ARGV[6], ARGV[7], ARGV[8], ARGV[11], ARGV[12] == '1'
local k = job_key(id)
local owner = owns(worker, entry)
local h = call('HMGET', k, 'state', 'sender', 'chunk_size', 'recipients', 'expires_ms', 'rate', 'bucket_ms', 'trip_run', 'speed',
               'speed_at')
if not h[1] then
  if #facts > 0 then
    call('XADD', P .. 'outcomes', '*', 'k', 'facts', 'j', id, 'c', int(chunk), 'z', '0', 'f', facts, 'd', record)
  end
  if owner and done then
    local f = fields_of(entry)
    close(entry, f and f.x)
  end
  return {owner and '1' or '0', 'gone', '0', '0'}
end
local sender, size = h[2], num(h[3])
local base = chunk * size
local length = math.min(size, num(h[4]) - base)
local bytes = {string.byte(call('GETRANGE', k .. ':states', int(base), int(base + length - 1)), 1, -1)}
local delta, reasons, kept, dues, applied, dirty = {}, {}, {}, {}, 0, false
local trips, run_now, others, trip_reason = 0, 0, 0, nil

local function move(x, new)
  local old = bytes[x]
  delta[old % 8] = (delta[old % 8] or 0) - 1
  delta[new % 8] = (delta[new % 8] or 0) + 1
  bytes[x], dirty = new, true
end

for i = 1, #facts, 9 do
  local a, b, state, attempt, r1, r2, d1, d2, d3 = string.byte(facts, i, i + 8)
  local x = a * 256 + b + 1
  local old = bytes[x]
  if old then
    local was, used = old % 8, math.floor(old / 8)
    local new
    if state == 4 or state == 0 then
      dues[x] = d1 * 65536 + d2 * 256 + d3
      -- Only the owner lowers, and only an intent of the same attempt.
      if owner and was == 1 and used == attempt then
        new = state == 4 and attempt * 8 + 4 or math.max(0, attempt - 1) * 8
      end
    elseif state == 1 then
      if RANK[was] < RANK[1] and attempt > used then new = attempt * 8 + 1 end
    elseif RANK[state] > RANK[was] then
      new = math.max(attempt, used) * 8 + state
    end
    if new then
      move(x, new)
      applied = applied + 1
      if OUTCOME[state] then
        kept[#kept + 1] = string.sub(facts, i, i + 8)
        local reason = (r1 % 128) * 256 + r2
        if state == 3 or state == 5 then reasons[reason] = (reasons[reason] or 0) + 1 end
        if state == 3 and r1 >= 128 then
          trips, run_now, trip_reason = trips + 1, run_now + 1, reason
        else
          others, run_now = others + 1, 0
        end
      end
    end
  end
end

local state, expires = h[1], num(h[5])
local running = (state == 'running' or state == 'queued') and (expires == 0 or expires > now)
local paid_later = 0
if owner and running then
  for i = 1, #intents, 4 do
    local a, b, attempt, in_place = string.byte(intents, i, i + 3)
    local x = a * 256 + b + 1
    local old = bytes[x]
    if old then
      local was, used = old % 8, math.floor(old / 8)
      if was == 0 or was == 4 or (was == 1 and attempt > used) then
        if old ~= attempt * 8 + 1 then
          move(x, attempt * 8 + 1)
          paid_later = paid_later + in_place
        end
      end
    end
  end
end

local ranges = {}
if owner and done then
  local to, why = 0, 0
  if state == 'cancelling' then to, why = 7, CANCELLED
  elseif expires > 0 and expires <= now then to, why = 5, EXPIRED end
  local lists = {}
  local function rest(x)
    local byte = bytes[x]
    local was = byte and byte % 8
    if was == 1 then
      move(x, byte + 5)
      ranges[#ranges + 1] = {6, CRASH, base + x - 1}
    elseif was == 0 or was == 4 then
      if to > 0 then
        move(x, byte - was + to)
        ranges[#ranges + 1] = {to, why, base + x - 1}
        if to == 5 then reasons[why] = (reasons[why] or 0) + 1 end
      else
        local due = dues[x] or 0
        lists[due] = lists[due] or {}
        lists[due][#lists[due] + 1] = u16(x - 1)
      end
    end
  end
  if offsets == '' then
    for x = 1, length do rest(x) end
  else
    for i = 1, #offsets, 2 do
      local a, b = string.byte(offsets, i, i + 1)
      rest(a * 256 + b + 1)
    end
  end
  for due, list in pairs(lists) do
    call('ZADD', k .. ':again', int(now + due * 1000), int(chunk) .. ':' .. table.concat(list))
  end
end

if dirty then
  call('SETRANGE', k .. ':states', int(base), string.char(unpack(bytes)))
  count(id, sender, delta, reasons, h[9], h[10])
end
if #kept > 0 then
  call('XADD', P .. 'outcomes', '*', 'k', 'facts', 'j', id, 'c', int(chunk), 'z', int(size),
       'f', table.concat(kept), 'd', record)
end
for _, r in ipairs(ranges) do
  call('XADD', P .. 'outcomes', '*', 'k', 'range', 'j', id, 's', int(r[1]), 'r', int(r[2]),
       'p', u32(r[3]) .. u32(r[3]))
end

local blocked = 0
if ARGV[9] ~= '' then
  local sk, s = sender_key(sender), sender_of(sender)
  if s then
    blocked = now + math.max(1000, num(ARGV[9]))
    local last = num(call('HGET', sk, 'last_cut'))
    -- One cut in 2 s: a second of messages is in the air and all of them will say the same.
    if now - last >= 2000 or last > now then
      local rate = s.rate > 0 and s.rate or math.max(1, num(call('HGET', sk, 'released_before')))
      local floor = math.max(num(call('HGET', sk, 'rate_min') or '1'), 0.1)
      call('HSET', sk, 'ceiling', string.format('%.3f', rate), 'rate', string.format('%.3f', math.max(floor, 0.7 * rate)),
           'rate_at', int(now), 'last_cut', int(now))
      call('HINCRBY', sk, 'cuts', 1)
    end
    blocked = math.max(blocked, s.blocked)
    call('HSET', sk, 'blocked_until', int(blocked), 'why', 'throttled',
         'bucket_ms', int(math.max(s.bucket, blocked)))
    wake_at('s:' .. sender, blocked)
  end
end
if paid_later > 0 then
  local s = sender_of(sender)
  if s then spend(s, id, num(h[6]), num(h[7]), paid_later) end
end

-- The breaker, whatsapp 6.3: 20 equal content errors in a row, or 50 that are half of all.
if trips > 0 or (others > 0 and num(h[8]) > 0) then
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

if owner and done then
  close(entry, sender)
  local open = false
  for x = 1, length do
    local was = bytes[x] % 8
    if was == 0 or was == 1 or was == 4 then open = true; break end
  end
  if not open then call('XDEL', k .. ':chunks', int(chunk + 1) .. '-0') end
  if num(ARGV[10]) > 0 then
    local old = num(call('HGET', sender_key(sender), 'latency_ms') or '300')
    local mean = math.min(5000, math.max(50, 0.8 * old + 0.2 * num(ARGV[10])))
    call('HSET', sender_key(sender), 'latency_ms', int(mean))
  end
end
if #kept > 0 or #ranges > 0 then state = settle_end(id) end
if owner and done then
  offer(id)
  join(sender)
  release(4)
end
if blocked == 0 then blocked = num(call('HGET', sender_key(sender), 'blocked_until')) end
-- A running job past its deadline took no intents: its word must not sound like go.
if not running and (state == 'running' or state == 'queued') then state = 'expired' end
return {owner and '1' or '0', state, int(applied), int(blocked)}
