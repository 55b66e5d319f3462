--- Take a place in every sliding log, or in none: at most N in any window, on the server's clock.
--
-- KEYS[n]  {v}:quota:<who>   zset   member → when it was taken, ms
-- ARGV[1]  member, unique
-- ARGV[2]  window, s
-- ARGV[n]  the limit of KEYS[n - 2]
-- Returns  {1 taken | 0 refused, then for each key: places left, s until the oldest is free}
-- Repeat   same member: no second place
-- Cost     O(log N) a key
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local window = tonumber(ARGV[2]) * 1000
local free = 1
for i, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now - window))
  local has = redis.call('ZSCORE', key, ARGV[1])
  if not has and redis.call('ZCARD', key) >= tonumber(ARGV[i + 2]) then free = 0 end
end
local out = {free}
for i, key in ipairs(KEYS) do
  if free == 1 then
    redis.call('ZADD', key, 'NX', string.format('%.0f', now), ARGV[1])
    redis.call('PEXPIRE', key, window)
  end
  local oldest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  out[#out + 1] = math.max(0, tonumber(ARGV[i + 2]) - redis.call('ZCARD', key))
  out[#out + 1] = oldest[2] and math.ceil((tonumber(oldest[2]) + window - now) / 1000) or 0
end
return out
