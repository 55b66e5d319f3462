--- Open a session: remember whose it is and when it ends in any case.
--
-- KEYS[1]  {v}:session:<hash>   hash   the SHA-256 of the cookie, never the cookie
-- KEYS[2]  {v}:user:<id>        set    the user's sessions
-- ARGV[1]  hash   ARGV[2]  user id   ARGV[3]  idle, s   ARGV[4]  longest, s
-- Returns  when it ends unless used, ms
-- Repeat   same
-- Cost     O(1)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local idle, most = tonumber(ARGV[3]) * 1000, tonumber(ARGV[4]) * 1000
local span = math.min(idle, most)
redis.call('HSET', KEYS[1], 'user', ARGV[2], 'until', string.format('%.0f', now + most))
redis.call('PEXPIRE', KEYS[1], span)
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], most)
return string.format('%.0f', now + span)
