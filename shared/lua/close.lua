--- Take the last facts of a claim, give its rest back or an outcome, and close it.
-- Needs    told, release
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  worker      ARGV[3]  entry      ARGV[4]  job      ARGV[5]  chunk
-- ARGV[6]  facts     as report; every `retry` and `pending` of the claim is in here with its due
-- ARGV[7]  record    ARGV[8]  throttled   as report
-- ARGV[9]  offsets   of the claim, packed u16; '' = all of the chunk
-- ARGV[10] latency   mean answer time of this claim, ms; 0 = none
-- Reads    P ready, P job:<id>
-- Writes   as report, and P job:<id>:again, P job:<id>:chunks, P ready, P turns
-- Returns  as report
-- Repeat   who does not own the claim tells facts and closes nothing
-- Cost     O(recipients of the chunk), and a release
if not state then
  if owner then
    local f = fields_of(entry)
    close(entry, f and f.x)
  end
  return tell_gone()
end
apply_facts()
local ranges = {}
if owner then
  local to, why = 0, 0
  if state == 'cancelling' then to, why = 7, CANCELLED
  elseif expires > 0 and expires <= now then to, why = 5, EXPIRED end
  local lists = {}
  local function rest(x)
    local byte = bytes[x]
    local was = byte and byte % 8
    if was == 1 then
      move(x, byte, byte + 5)
      ranges[#ranges + 1] = {6, CRASH, base + x - 1}
    elseif was == 0 or was == 4 then
      if to > 0 then
        move(x, byte, byte - was + to)
        ranges[#ranges + 1] = {to, why, base + x - 1}
        if to == 5 then reasons[why] = (reasons[why] or 0) + 1 end
      else
        local due = dues[x] or 0
        lists[due] = lists[due] or {}
        lists[due][#lists[due] + 1] = u16(x - 1)
      end
    end
  end
  local offsets = ARGV[9]
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
store()
for _, r in ipairs(ranges) do
  call('XADD', P .. 'outcomes', '*', 'k', 'range', 'j', id, 's', r[1], 'r', r[2], 'p', u32(r[3]) .. u32(r[3]))
end
if owner then
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
if owner then
  offer(id)
  join(sender)
  release(4)
end
return answer()
