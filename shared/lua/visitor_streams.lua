--- How many streams are open, told by one API process and read for all of them.
--
-- KEYS[1]  {v}:streams   hash
-- ARGV[1]  process
-- ARGV[2]  connections, users and events of the last minute, with a space between
-- Returns  the same words of every process that told within 30 s
-- Repeat   same
-- Cost     O(processes)
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2])
redis.call('EXPIRE', KEYS[1], 30)
local told = redis.call('HGETALL', KEYS[1])
local out = {}
for i = 1, #told, 2 do
  local at, words = string.match(told[i + 1], '^(%d+) (.*)$')
  if now - tonumber(at) > 30 then
    redis.call('HDEL', KEYS[1], told[i])
  else
    out[#out + 1] = words
  end
end
return out
