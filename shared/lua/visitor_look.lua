--- Whose session is this? Looking keeps it alive, but never past its absolute end.
--
-- KEYS[1]  {v}:session:<hash>   hash
-- ARGV[1]  idle, s
-- Returns  {} | {user id, when it ends unless used, ms}
-- Repeat   same
-- Cost     O(1)
local got = redis.call('HMGET', KEYS[1], 'user', 'until')
if not got[1] then return {} end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local left = math.min(tonumber(ARGV[1]) * 1000, tonumber(got[2]) - now)
if left <= 0 then
  redis.call('DEL', KEYS[1])
  return {}
end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', left))
return {got[1], string.format('%.0f', now + left)}
