-- Move conversations of trunkline 0.1, which knew no namespaces. One that is stored already stays.
-- KEYS: a key that is set when all are moved. ARGV: cursor, their pattern, length of their prefix,
-- the new prefix. Returns the next cursor, '0' after the last.
if redis.call('EXISTS', KEYS[1]) == 1 then return '0' end
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 500)
for _, old in ipairs(page[2]) do
    local new = ARGV[4] .. string.sub(old, ARGV[3] + 1)
    if redis.call('EXISTS', new) == 0 then
        local names = {}
        for _, field in ipairs(redis.call('HKEYS', old)) do
            if string.sub(field, 1, 1) == '.' then names[#names + 1] = string.sub(field, 2) end
        end
        redis.call('HSET', old, 'names', table.concat(names))
        redis.call('HDEL', old, 'x')
        redis.call('RENAME', old, new)
    end
end
if page[1] == '0' then redis.call('SET', KEYS[1], 2) end
return page[1]
