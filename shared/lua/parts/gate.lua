-- Whether a shard may release and begin now.
-- Needs    base
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
