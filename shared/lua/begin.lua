--- Look at a claim before sending: is it still mine, may it start, when, what is left of it?
-- Needs    gate, claims, buckets
--
-- KEYS[1]  P gate    hash    read: hold_until, off, born
-- ARGV[1]  P         ARGV[2]  worker      ARGV[3]  entry      ARGV[4]  job      ARGV[5]  chunk
-- Reads    P ready, P job:<id>, P job:<id>:chunks, P job:<id>:states, P sender:<id>, P off
-- Writes   late claims only: buckets of P sender:<id>, P job:<id>; P job:<id>:again, P ready, P timers
-- Returns  {wait, ms} | {lost} | {gone} | {back}
--          | {go, now_ms, start_ms, gap_us, job state, expires_ms, payload, states}
-- Repeat   may charge a late claim twice: the safe side
-- Cost     O(recipients of the chunk)
local wait = wait_ms()
if wait > 0 then return {'wait', int(wait)} end
local worker, entry, id, chunk = ARGV[2], ARGV[3], ARGV[4], num(ARGV[5])
if not owns(worker, entry) then return {'lost'} end
local f = fields_of(entry)
if not f then call('XACK', P .. 'ready', 'workers', entry); return {'gone'} end
local k = job_key(id)
local h = call('HMGET', k, 'state', 'sender', 'expires_ms', 'chunk_size', 'recipients', 'rate', 'bucket_ms')
local payload = call('XRANGE', k .. ':chunks', int(chunk + 1) .. '-0', int(chunk + 1) .. '-0')
if not h[1] or not payload[1] then
  close(entry, f.x)
  wake_at('s:' .. f.x, now)
  return {'gone'}
end
local start, gap, size = num(f.s), num(f.g), num(f.n)
local base = chunk * num(h[4])
local length = math.min(num(h[4]), num(h[5]) - base)
-- Released in what is still to come: the clock went back, and its start may be a day away.
local is_ahead = num(f.r) > now
if is_ahead then start = now end
-- A burst is released with a start that has passed: late is who comes late after the release.
if gap > 0 and (is_ahead or now > math.max(start, num(f.r)) + AHEAD_MS) then
  -- What a bucket did not use in time is lost: a late claim pays again (381 in a second else).
  local s = sender_of(h[2])
  local job_rate, job_bucket = num(h[6]), num(h[7])
  local at = s and math.max(now - s.burst_ms, s.rate > 0 and s.bucket or 0, job_rate > 0 and job_bucket or 0)
  if not s or at > now + AHEAD_MS then
    local offsets = f.o
    if offsets == '' then
      local list = {}
      for i = 0, length - 1 do list[#list + 1] = u16(i) end
      offsets = table.concat(list)
    end
    call('ZADD', k .. ':again', int(now), f.c .. ':' .. offsets)
    close(entry, f.x)
    wake_at('j:' .. id, now)
    return {'back'}
  end
  start = spend(s, id, job_rate, job_bucket, size)
  -- It pays at the rate of now, so it keeps the gap of now.
  if s.rate > 0 then gap = math.max(gap, math.floor(1000000 / s.rate)) end
end
local states = call('GETRANGE', k .. ':states', int(base), int(base + length - 1))
return {'go', int(now), int(start), int(gap), h[1], h[3] or '0', payload[1][2][2], states}
